"""Images from files that samples are made from: read them, and make the generator that does it."""

from collections.abc import Sequence

from genlab.errors import ConfigError
from genlab.generators.autoregressive import AutoregressiveGenerator, Completion
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator, Enlargement
from genlab.generators.given import read_given


def completing(
    generator: Generator, path: str, keep: int | None, seeds: Sequence[int]
) -> tuple[Completion, tuple[int, ...] | None]:
    """Make a generator that completes the images of a set.

    Args:
        generator: of the autoregressive family.
        path: images of the model's size, see `read_given`.
        keep: how many rows from the top stand; None is half of them.
        seeds: see `read_given`.

    Returns:
        The generator, and the class of each seed's image, where the images have the model's
        classes.

    Raises:
        ConfigError: the model is of another family, or ``keep`` is out of range.
        DataError: the images cannot be read or are of another size.
    """
    if not isinstance(generator, AutoregressiveGenerator):
        raise ConfigError(
            f"only autoregressive models complete images; this one is of the family "
            f"{generator.family!r}, so leave complete out"
        )
    size = generator.image_shape[1]
    images, labels = read_given(generator, path, seeds, size)
    return Completion(generator, images, size // 2 if keep is None else keep, seeds), labels


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
