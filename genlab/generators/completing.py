"""In-painting of files: read images and make the generator that completes them."""

from collections.abc import Sequence

from genlab.errors import ConfigError
from genlab.generators.autoregressive import AutoregressiveGenerator, Completion
from genlab.generators.base import Generator
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
