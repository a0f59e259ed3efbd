"""A picture of a data set: some images of each class."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from genlab.data.base import ImageSource
from genlab.data.conform import Conform
from genlab.data.pictures import grid
from genlab.errors import DataError

MAX_CLASSES = 32
PER_CLASS = 8
UNLABELLED = 64
MAX_SIDE = 128


def contact_sheet(source: ImageSource, image_size: int | None = None) -> Image.Image:
    """Draw some images of each class, evenly spaced over the set, one row a class.

    Images are brought to one size with their shape kept, transparent ones laid on white, and broken
    ones left out.

    Args:
        source: the images.
        image_size: of each; None takes the larger side of the first image, 128 at most.

    Raises:
        DataError: no image can be read.
    """
    groups = [_read(source, indices) for indices in _groups(source)]
    groups = [group for group in groups if group]
    if not groups:
        raise DataError(f"{source.path} has no image that can be read; there is nothing to draw")
    size = image_size or min(MAX_SIDE, max(groups[0][0][1].shape[1:]))
    conform = Conform(image_size=size, channels=3, fit="pad", alpha="white")
    count = min(len(group) for group in groups) if source.labels is not None else UNLABELLED
    chosen = [entry for group in groups for entry in group[: max(count, 2)]]
    images = [conform(pixels).transpose(1, 2, 0) for _, pixels in chosen]
    labels = None if source.labels is None else source.labels[[i for i, _ in chosen]].tolist()
    title = f"{source.path.name}: {len(source):,} images"
    return grid(images, labels, source.class_names, title)


def _groups(source: ImageSource) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Numbers of the images to draw, class by class."""
    if source.labels is None:
        yield _spaced(np.arange(len(source)), UNLABELLED)
        return
    classes = np.unique(source.labels)
    for label in _spaced(classes, MAX_CLASSES):
        yield _spaced(np.flatnonzero(source.labels == label), PER_CLASS)


def _spaced(
    values: np.ndarray[tuple[int], np.dtype[np.int64]], count: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if len(values) <= count:
        return values
    return values[np.arange(count) * len(values) // count]


def _read(
    source: ImageSource, indices: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> list[tuple[int, np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]]]:
    found = []
    for index in indices.tolist():
        try:
            found.append((index, source.read(index)))
        except DataError:  # broken images have their sentence in the report
            continue
    return found
