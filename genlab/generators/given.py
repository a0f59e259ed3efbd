"""Input images, one for each seed: what editing and super-resolution share."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from genlab.data.class_names import match_classes
from genlab.data.conform import Conform, Wording
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.data.sources.base import ImageSource
from genlab.data.sources.decode import EXTENSIONS, decode
from genlab.errors import ConfigError, DataError, LabelError
from genlab.generators.base import Generator

WORDING = Wording(has_alpha=False)
"""How the settings of given images are written: ``fit=pad``."""


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
    generator: Generator,
    path: str,
    seeds: Sequence[int],
    image_size: int | None,
    fit: str = "none",
) -> tuple[Float[Tensor, "N C h w"], tuple[int, ...] | None]:
    """Read an image for each seed.

    Args:
        generator: what is to draw from them.
        path: a picture for all seeds, or a folder of images, a zip, a folder with idx files, or an
            npz file; of a set with parts the test images are read.
        seeds: each gets the next image; where there are more seeds, the images take turns.
        image_size: of the images; None takes the first one's, and all must have it.
        fit: what to do with images of another size: ``none``, ``pad``, ``resize`` or ``crop``.

    Returns:
        The images in [-1, 1], and the class of each seed's image, where the images have the model's
        classes.

    Raises:
        DataError: the images cannot be read or are of another size.
    """
    channels = generator.image_shape[0]
    pixels, images = _read(path, len(seeds), image_size, channels, fit)
    if images is None or images.source.labels is None:
        return from_uint8(pixels), None
    classes = _model_classes(images.source, generator)
    stored = images.source.labels
    labels = [classes[int(stored[n % len(images)])] for n in range(len(seeds))]
    class_labels = tuple(label for label in labels if label is not None)
    return from_uint8(pixels), class_labels if len(class_labels) == len(labels) else None


def _model_classes(source: ImageSource, generator: Generator) -> list[int | None]:
    """The model's class that each class of the images is: by name where both have names."""
    count, own = source.num_classes, generator.num_classes
    by_name = source.class_names is not None and generator.class_names is not None
    if not by_name and count != own:
        return [None] * count
    try:
        return match_classes(count, source.class_names, own, generator.class_names)
    except LabelError:  # two classes of the model could be meant
        return [None] * count


def read_masks(
    path: str, seeds: Sequence[int], image_size: int, fit: str = "none"
) -> Bool[Tensor, "N H W"]:
    """Read a mask for each seed.

    Args:
        path: one picture for all, or a set of them, see `read_given`.
        seeds: each gets the next mask; where there are more seeds, the masks take turns.
        image_size: of the images.
        fit: see `read_given`; the edge that ``pad`` adds is black.

    Returns:
        True where pixels are drawn: where a mask is nearer to white than to black.

    Raises:
        DataError: the masks cannot be read or are of another size.
    """
    return _read(path, len(seeds), image_size, 1, fit)[0][:, 0] >= 128


def _read(
    path: str, count: int, image_size: int | None, channels: int, fit: str
) -> tuple[UInt8[Tensor, "N C H W"], ImageDataset | None]:
    """So many images, and the set that they are of where it is one."""
    file = Path(path).expanduser()
    if file.is_file() and file.suffix.lower() in EXTENSIONS:
        try:
            pixels = decode(file.read_bytes(), path).pixels
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
        conform = Conform(image_size=image_size, channels=channels, fit=fit, wording=WORDING)
        one = torch.from_numpy(conform(pixels, path).copy())
        return one.expand(count, *one.shape), None
    try:
        images = ImageDataset(path, image_size, channels, fit, False, "test", wording=WORDING)
    except DataError:  # what has no parts counts as its training part
        images = ImageDataset(path, image_size, channels, fit, False, "train", wording=WORDING)
    return torch.stack([images[number % len(images)][0] for number in range(count)]), images
