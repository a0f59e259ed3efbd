"""A picture of a data set: some images of each class."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from genlab.data.conform import Conform
from genlab.data.sources.base import ImageSource
from genlab.data.writing.pictures import grid
from genlab.errors import DataError

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

MAX_CLASSES = 32
PER_CLASS = 8
UNLABELLED = 64
MAX_SIDE = 128


def contact_sheet(source: ImageSource, conform: Conform | None = None) -> Image.Image:
    """Draw some images of each class, evenly spaced over the set, one row a class.

    Images are shown as training would see them: of the size, channels and colour behind them that
    are set. What is not set shows all of an image: its shape is kept, and it is laid on white.
    Broken images are left out.

    Args:
        source: the images.
        conform: how training is to make them alike. Without a size they get the larger side of the
            first image, 128 at most.

    Raises:
        DataError: no image can be read.
    """
    groups = [_read(source, indices) for indices in _groups(source)]
    groups = [group for group in groups if group]
    if not groups:
        raise DataError(f"{source.path} has no image that can be read; there is nothing to draw")
    shown = _shown(conform or Conform(), max(groups[0][0][1].shape[1:]))
    count = min(len(group) for group in groups) if source.labels is not None else UNLABELLED
    chosen = [entry for group in groups for entry in group[: max(count, 2)]]
    images = [shown(pixels).transpose(1, 2, 0) for _, pixels in chosen]
    labels = None if source.labels is None else source.labels[[i for i, _ in chosen]].tolist()
    title = f"{source.path.name}: {len(source):,} images"
    return grid(images, labels, source.class_names, title)


def _shown(conform: Conform, side: int) -> Callable[[Pixels], Pixels]:
    """Brings an image into the shape that it is shown in."""
    trained = replace(
        conform,
        image_size=conform.image_size or min(MAX_SIDE, side),
        fit="pad" if conform.fit == "none" else conform.fit,
        alpha="white" if conform.alpha == "refuse" else conform.alpha,
    )
    in_colour = Conform(channels=3)
    return lambda pixels: in_colour(trained(pixels))


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
    images = []
    for index in indices.tolist():
        try:
            images.append((index, source.read(index)))
        except DataError:  # broken images have their sentence in the report
            continue
    return images
