"""Reader of BigGAN-PyTorch's networks: G, G_ema and D, of BigGAN and BigGAN-deep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.readers.biggan_config import (
    OWN_NAMES,
    discriminator_arguments,
    generator_arguments,
)
from genlab.checkpoints.weights import StateDict, build_network, mentions, read_state_dict
from genlab.errors import CheckpointError, ConfigError, printable
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANDiscriminator, BigGANGenerator
from genlab.networks.biggan_deep import BigGANDeepDiscriminator, BigGANDeepGenerator
from genlab.networks.gan_base import GeneratorNetwork


class BigGANReader:
    """Reads a generator, or a discriminator (not calibrated)."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """BigGAN-PyTorch's own arguments or tensors."""
        if config is not None and any(name in config for name in OWN_NAMES):
            return True
        return mentions(source, "blocks.0.0.bn1.gain.weight") or mentions(source, "embed.u0")

    def read(self, source: Path, config: Config | None) -> GanGenerator | GanDiscriminator:
        """Read either of them; see `genlab.checkpoints.readers.base.Reader`."""
        weights = read_state_dict(source)
        _refuse_cross_replica(weights, str(source))
        if _is_discriminator(weights):
            return GanDiscriminator(discriminator_network(weights, config, str(source)))
        return GanGenerator(generator_network(weights, config, str(source)))


def generator_network(
    weights: StateDict, config: Config | None = None, where: str = "the state dict"
) -> GeneratorNetwork:
    """Build a generator network from official weights.

    Args:
        weights: the official state dict of G or G_ema.
        config: official constructor arguments; what is left out is read off the shapes. The shapes
            tell nothing of ``BN_eps`` and ``SN_eps``, whose official defaults are 1e-5 and 1e-12.
        where: the file, for messages.

    Raises:
        CheckpointError: it is no generator, or does not fit the config.
        ConfigError: an argument is unknown or out of range.
    """
    if _is_discriminator(weights):
        raise CheckpointError(
            f"{where} is a discriminator, which draws no images; convert the file of G or G_ema"
        )
    _refuse_cross_replica(weights, where)
    deep = "blocks.0.0.conv4.weight" in weights
    arguments = _arguments(generator_arguments, weights, config, where, deep=deep)
    if deep and not ("shared.weight" in weights and (config or {}).get("hier", True)):
        raise ConfigError(
            f"{where}: BigGAN-deep works only with a shared embedding and the whole latent in "
            "every block; give G_shared=true hier=true"
        )
    cls: Any = BigGANDeepGenerator if deep else BigGANGenerator
    network: GeneratorNetwork = build_network(
        cls, arguments, _own_names(weights), f"{where} ({cls.__name__})"
    )
    return network


def read_discriminator(
    source: Path | str, config: Config | None = None
) -> BigGANDiscriminator | BigGANDeepDiscriminator:
    """Read a discriminator's network, to go on training it.

    Args:
        source: the official file of D.
        config: official constructor arguments; what is left out is read off the shapes.

    Raises:
        CheckpointError: the file is damaged, is no discriminator, or does not fit the config.
        ConfigError: an argument is unknown or out of range.
    """
    return discriminator_network(read_state_dict(Path(source)), config, str(source))


def discriminator_network(
    weights: StateDict, config: Config | None = None, where: str = "the state dict"
) -> BigGANDiscriminator | BigGANDeepDiscriminator:
    """Build a discriminator network from official weights; see `generator_network`."""
    if "embed.weight" not in weights:
        raise CheckpointError(f"{where} is no discriminator of BigGAN; give the file of D")
    deep = "input_conv.weight" in weights
    arguments = _arguments(discriminator_arguments, weights, config, where, deep=deep)
    cls: Any = BigGANDeepDiscriminator if deep else BigGANDiscriminator
    network: BigGANDiscriminator | BigGANDeepDiscriminator = build_network(
        cls, arguments, weights, f"{where} ({cls.__name__})"
    )
    return network


def _refuse_cross_replica(weights: StateDict, where: str) -> None:
    running = next((name for name in weights if name.endswith(".bn.running_mean")), None)
    if running is not None:
        raise CheckpointError(
            f"{where} was trained with cross_replica=True (it holds {printable(running, 80)}): "
            "GenLab has no batch norm across GPUs; convert a network that was trained without"
        )


def _is_discriminator(weights: StateDict) -> bool:
    return "embed.weight" in weights and "linear.weight" in weights


def _arguments(
    read: Callable[..., dict[str, Any]],
    weights: StateDict,
    config: Config | None,
    where: str,
    *,
    deep: bool,
) -> dict[str, Any]:
    try:
        return read(config or {}, weights, deep=deep)
    except ConfigError:
        raise
    except (LookupError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"the shapes in {where} are those of no BigGAN{'-deep' if deep else ''} that GenLab "
            f"knows; check the file{', and G_depth or D_depth in the config' if deep else ''}"
        ) from error


def _own_names(weights: StateDict) -> dict[str, Tensor]:
    """Our names: the own batch norm's statistics are the layer's, its counter is left out.

    The file does not say whether its statistics are averages or sums of standing statistics, which
    its counter alone does not tell either; officially they are taken for averages.
    """
    return {
        name.replace(".bn.stored_", ".stored_"): value
        for name, value in weights.items()
        if not name.endswith(".bn.accumulation_counter")
    }
