"""Models whose samples are latents: checks where images are needed, and the wording."""

from genlab.data.writing.sample_kinds import IMAGES, LATENTS, SampleKind
from genlab.errors import ConfigError
from genlab.generators.base import Generator


def kind_of(generator: Generator) -> SampleKind:
    """What a generator's samples are."""
    return LATENTS if generator.draws_latents else IMAGES


def check_draws_images(generator: Generator, need: str) -> None:
    """Refuse a model of latents where only images will do.

    Args:
        generator: the model.
        need: what images are needed for, as a clause: ``scores are those of images``.

    Raises:
        ConfigError: its samples are latents; names the cure.
    """
    if generator.draws_latents:
        raise ConfigError(
            f"these are latents: the model draws {size_of(generator)} and has no autoencoder to "
            f"make images of them, and {need}; attach the one that it was trained with by "
            "--autoencoder FOLDER (in Python: genlab.load(MODEL, autoencoder=FOLDER))"
        )


def size_of(generator: Generator) -> str:
    """Number and size of channels: ``latents of 4 x 32 x 32``."""
    return f"latents of {' x '.join(map(str, generator.image_shape))}"
