"""Images that samples are made from, one for each seed: what completing and enlarging share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.errors import ConfigError, DataError
from genlab.generators.base import Generator


def by_seed(images: Float[Tensor, "N C H W"], seeds: Sequence[int]) -> dict[int, Tensor]:
    """Images by the seeds of their samples, in float32.

    Raises:
        ConfigError: there are not as many as seeds, or a seed stands twice.
    """
    if len(images) != len(seeds):
        raise ConfigError(f"{len(images)} images for {len(seeds)} seeds; give one for each")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            "a seed that stands twice would make two images with the same draws; give each image "
            "a seed of its own"
        )
    return dict(zip(seeds, images.to(torch.float32), strict=True))


def read_given(
    generator: Generator, path: str, seeds: Sequence[int], image_size: int | None
) -> tuple[Float[Tensor, "N C h w"], tuple[int, ...] | None]:
    """Read an image for each seed.

    Args:
        generator: what is to draw from them.
        path: a folder of images, a zip, a folder with idx files, or an npz file; of a set with
            parts the test images are read.
        seeds: each gets the next image; where there are more seeds, the images take turns.
        image_size: of the images; None takes the first one's, and all must have it.

    Returns:
        The images in [-1, 1], and the class of each seed's image, where the images have the model's
        classes.

    Raises:
        DataError: the images cannot be read or are of another size.
    """
    channels = generator.image_shape[0]
    try:
        images = ImageDataset(path, image_size, channels, labels=False, split="test")
    except DataError:  # what has no parts counts as its training part
        images = ImageDataset(path, image_size, channels, labels=False, split="train")
    rows = [number % len(images) for number in range(len(seeds))]
    pixels = torch.stack([images[row][0] for row in rows])
    known = images.source.labels
    if known is None or images.source.num_classes != generator.num_classes:
        return from_uint8(pixels), None
    return from_uint8(pixels), tuple(int(known[row]) for row in rows)
