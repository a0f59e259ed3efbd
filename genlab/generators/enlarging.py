"""Super-resolution of files: read images and make the generator that enlarges them."""

from collections.abc import Sequence

from genlab.errors import ConfigError
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator, Enlargement
from genlab.generators.given import read_given


def enlarging(
    generator: Generator, path: str, seeds: Sequence[int]
) -> tuple[Enlargement, tuple[int, ...] | None]:
    """Make a generator that enlarges the images of a set.

    Args:
        generator: a super-resolution diffusion model.
        path: images smaller than the model's, see `read_given`.
        seeds: see `read_given`.

    Returns:
        The generator, and the class of each seed's image, where the images have the model's
        classes.

    Raises:
        ConfigError: the model enlarges nothing, or the images are too large.
        DataError: the images cannot be read or are of different sizes.
    """
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(
            f"only super-resolution diffusion models enlarge images; this one is of the family "
            f"{generator.family!r}, so leave low_res out"
        )
    images, labels = read_given(generator, path, seeds, None)
    return Enlargement(generator, images, seeds), labels
