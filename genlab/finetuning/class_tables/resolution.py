"""A transformer for larger or smaller images, made of a trained one."""

from genlab.errors import ConfigError
from genlab.finetuning.class_tables.rebuilding import rebuild
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator
from genlab.networks.dit import DiT, sin_cos_positions
from genlab.networks.gan_base import GeneratorNetwork

POSITIONS = "pos_embed"


def with_resolution(generator: Generator, size: int) -> DiffusionGenerator:
    """Make a DiT (or SiT) for images of another size, to be fine-tuned.

    Positions keep to the range that the network was trained on: from 256 to 512 pixels, patch
    (i, j) stands where (i / 2, j / 2) stood. All weights are shared with the base, in the same
    memory; only the table of positions is new. Classes, preconditioning, autoencoder and sampler
    are kept.

    Args:
        generator: a diffusion model with a `DiT`; it is not changed.
        size: height and width of the images, in pixels; of a latent diffusion model not of the
            latents.

    Returns:
        The generator, without a card.

    Raises:
        ConfigError: the network is bound to its size, or neither patches nor the autoencoder tile
            images of this one.

    Source: Xie et al. 2023, arXiv:2304.06648 (DiffFit), for the positions.
    """
    network = generator.network
    if not isinstance(network, DiT) or not isinstance(generator, DiffusionGenerator):
        raise ConfigError(
            f"a {type(network).__name__} cannot change its resolution: {_reason(generator)}; only "
            "a DiT or SiT can"
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"the resolution must be a whole number of pixels above 0, got {size!r}")
    state_size = size
    if generator.autoencoder is not None:
        channels = generator.image_shape[0]
        _, state_size, _ = generator.autoencoder.latent_shape((channels, size, size))
    if state_size % network.patch_size:
        step = network.patch_size * generator.image_shape[1] // generator.state_shape[1]
        raise ConfigError(
            f"images of {size}x{size} cannot be cut into the network's patches; choose a multiple "
            f"of {step}"
        )
    built = rebuild(
        network,
        new=[POSITIONS],
        img_resolution=state_size,
        position_resolution=network.trained_grid * network.patch_size,
    )
    table, grid = network.pos_embed, built.grid
    if grid != network.grid:
        positions = sin_cos_positions(network.hidden_size, grid, grid, built.trained_grid)
        table = positions.float()[None].to(table.device, table.dtype)
    built.pos_embed = table
    metadata = {**generator.metadata(), **generator.parts()}
    return type(generator).from_metadata(built, metadata)


def _reason(generator: Generator) -> str:
    if isinstance(generator.network, GeneratorNetwork):
        return "it doubles its first features a fixed number of times"
    if generator.family == "diffusion":
        return "its attention layers or positions belong to the size that it was built for"
    return "it was trained to draw images of this one size, pixel after pixel"
