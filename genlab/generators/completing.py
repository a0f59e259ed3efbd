"""In-painting of files: read images and make the generator that completes them."""

from collections.abc import Sequence

import torch

from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.errors import ConfigError
from genlab.generators.autoregressive import AutoregressiveGenerator, Completion
from genlab.generators.base import Generator


def completing(
    generator: Generator, path: str, keep: int | None, seeds: Sequence[int]
) -> tuple[Completion, tuple[int, ...] | None]:
    """Make a generator that completes the images of a set.

    Args:
        generator: of the autoregressive family.
        path: a folder of images, a zip, a folder with idx files (their test part) or an npz file,
            of the model's size.
        keep: how many rows from the top stand; None is half of them.
        seeds: each gets the next image; where there are more seeds, the images take turns.

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
    channels, size, _ = generator.image_shape
    images = ImageDataset(path, image_size=size, channels=channels, labels=False, split="test")
    rows = [number % len(images) for number in range(len(seeds))]
    pixels = torch.stack([images[row][0] for row in rows])
    kept = size // 2 if keep is None else keep
    completion = Completion(generator, from_uint8(pixels), kept, seeds)
    known = images.source.labels
    if known is None or images.source.num_classes != generator.num_classes:
        return completion, None
    return completion, tuple(int(known[row]) for row in rows)
