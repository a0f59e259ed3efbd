"""A data set for training: uint8 images of one shape, each with its label."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from genlab.data.conform import KEYWORDS, Conform, Wording, pad
from genlab.data.sources.base import NO_LABEL, ImageSource
from genlab.data.sources.opening import open_source
from genlab.errors import DataError

MAX_LOAD_BYTES = 8 * 2**30
"""What `ImageDataset.load_all` takes into memory unless told otherwise."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images of one shape and their labels; small to pickle, so that loader workers can have it.

    Args:
        path: a folder of images, a zip, a folder with idx files, or an npz file; or an open source.
        image_size: height and width wanted; None takes the first image's, and all must have it.
        channels: 1 or 3; None takes the first image's, and all must have it.
        fit: what to do with images of another size, see `Conform`.
        labels: whether labels are wanted; False gives every image `NO_LABEL`.
        split: ``train`` or ``test``, where the source has several parts.
        alpha: what to do with transparency, see `Conform`.
        wording: how messages name these settings.

    Attributes:
        image_shape: (C, H, W) of every image.
        labels: (N,), int64.
        num_classes: 0 when labels are not wanted.
        class_names: or None where they have none.

    Raises:
        DataError: the source cannot be opened, is empty, or has no labels though they are wanted.

    Example::

        images, labels = ImageDataset("fashion-mnist", image_size=32, fit="pad").load_all()
    """

    def __init__(
        self,
        path: str | Path | ImageSource,
        image_size: int | None = None,
        channels: int | None = None,
        fit: str = "none",
        labels: bool = True,
        split: str = "train",
        alpha: str = "refuse",
        wording: Wording = KEYWORDS,
    ) -> None:
        self.conform = Conform(
            image_size=image_size, channels=channels, fit=fit, alpha=alpha, wording=wording
        )
        self.source = path if isinstance(path, ImageSource) else open_source(path, split)
        if labels and self.source.labels is None:
            reasons = [f.message for f in self.source.findings if f.code in ("labels", "shards")]
            because = f" ({reasons[0]})" if reasons else ""
            without = f", or go on without classes ({wording.no_labels})"
            raise DataError(
                f"{self.source.path} has no labels{because}; sort the images into one folder for "
                f"each class{without if wording.no_labels else ''}"
            )
        first = self.conform(self.source.read(0), self._name(0))
        self.image_shape: tuple[int, int, int] = first.shape
        source_labels = self.source.labels if labels else None
        self.labels: Int64[Tensor, " N"] = (
            torch.full((len(self.source),), NO_LABEL)
            if source_labels is None
            else torch.from_numpy(source_labels.copy())
        )
        self.num_classes = self.source.num_classes if labels else 0
        self.class_names = self.source.class_names if labels else None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_bytes(self) -> int:
        """What all images take in memory."""
        return len(self) * int(np.prod(self.image_shape))

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "C H W"], int]:
        """One image, (C, H, W), 0 to 255, and its label."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return torch.from_numpy(self._pixels(index).copy()), int(self.labels[index])

    def _name(self, index: int) -> str:
        return f"{self.source.path}: {self.source.name(index)}"

    def _pixels(self, index: int) -> UInt8[np.ndarray, "C H W"]:
        pixels = self.conform(self.source.read(index), self._name(index))
        if pixels.shape != self.image_shape:
            raise DataError(
                f"{self._name(index)} has shape {_text(pixels.shape)} but the first image "
                f"{_text(self.image_shape)}; {self._cure(pixels.shape)} ('genlab data check' lists "
                "them all)"
            )
        return pixels

    def _cure(self, shape: tuple[int, ...]) -> str:
        """What makes an image of this shape like the first one."""
        wording = self.conform.wording
        if not wording.has_fit:
            return "make all alike first, with 'genlab data prepare'"
        cures = []
        if shape[1:] != self.image_shape[1:]:
            size = "size" if wording.prefix == "--" else "image_size"
            cures += [
                wording.setting(size, str(self.image_shape[1])),
                wording.setting("fit", "crop"),
            ]
        if shape[0] != self.image_shape[0]:
            cures.append(wording.setting("channels", "3"))
        return f"set {' and '.join(cures)}"

    def load_all(
        self,
        max_bytes: int = MAX_LOAD_BYTES,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[UInt8[Tensor, "N C H W"], Int64[Tensor, " N"]]:
        """All images in one tensor, for sets that fit into memory.

        Args:
            max_bytes: refuse to load more than this.
            threads: how many decode at once; None means one for each core, 8 at most.
            progress: called with the number of images read since the last call.

        Returns:
            Images (N, C, H, W), 0 to 255, and labels (N,).

        Raises:
            DataError: more than ``max_bytes``, or an image is damaged or of another shape.
        """
        size = self.num_bytes
        if size > max_bytes:
            raise DataError(
                f"{self.source.path} takes {size / 2**30:.1f} GiB in memory, more than the "
                f"{max_bytes / 2**30:.1f} GiB allowed; read it with a loader instead"
            )
        images = self._load_array()
        if images is None:
            images = np.empty((len(self), *self.image_shape), np.uint8)
            self._load_each(images, threads or min(8, os.cpu_count() or 1), progress)
        elif progress is not None:
            progress(len(self))
        return torch.from_numpy(images), self.labels

    def _load_array(self) -> UInt8[np.ndarray, "N C H W"] | None:
        """The quick way: the source is one array and needs at most padding."""
        images = self.source.read_all()
        if images is None or images.shape[1] != self.image_shape[0]:
            return None
        size = self.image_shape[-1]
        if images.shape[1:] == self.image_shape:
            return images.copy()
        if self.conform.fit == "pad" and max(images.shape[2:]) <= size:
            return pad(images, size)
        return None

    def _load_each(
        self,
        out: UInt8[np.ndarray, "N C H W"],
        threads: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        def load(index: int) -> None:
            out[index] = self._pixels(index)

        with ThreadPoolExecutor(threads) as pool:
            for start in range(
                0, len(self), 1024
            ):  # in blocks: a damaged image stops the work soon
                block = range(start, min(start + 1024, len(self)))
                for _ in pool.map(load, block):
                    pass
                if progress is not None:
                    progress(len(block))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
