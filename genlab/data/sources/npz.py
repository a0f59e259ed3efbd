"""Images in one npz file, laid out as ADM's samples: ``arr_0`` (N, H, W, C), ``arr_1`` (N,).

Other names are taken, too: the images are the one array of four (or three) axes and type uint8, or
the one that is named as the split (``x_train``); see `genlab.data.sources.npz_labels` for the
labels.
"""

from pathlib import Path
from typing import Any

from jaxtyping import UInt8

from genlab.data.sources.base import ImageSource
from genlab.data.sources.npy import Array, read_array, read_headers
from genlab.data.sources.npz_labels import find_labels, pick_images, read_labels
from genlab.errors import DataError


class NpzSource(ImageSource):
    """An npz file; the images are read on first use, in each process for itself.

    Args:
        path: the file. Pickled objects in it are never loaded.
        split: ``train`` or ``test``, where it holds several parts.

    Raises:
        DataError: it holds no images, or labels that do not fit them.
    """

    kind = "npz array"

    def __init__(self, path: Path, split: str = "train") -> None:
        self.path = path
        self.labels = self.class_names = None
        headers = read_headers(path)
        self._key, self.split = pick_images(headers, split, str(path))
        self._count = headers[self._key].shape[0]
        self._pixels: UInt8[Array, "N C H W"] | None = None
        try:
            name, self.findings = find_labels(headers, self._key, split)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if name is not None:
            values = read_array(path, name)
            self.labels, self.class_names = read_labels(values, self._count, f"{path}: {name}")

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """The array and the image's number in it."""
        return f"{self._key}[{index}]"

    def read(self, index: int) -> UInt8[Array, "C H W"]:
        """One image."""
        return self.read_all()[index]

    def read_all(self) -> UInt8[Array, "N C H W"]:
        """All images, (N, C, H, W)."""
        if self._pixels is None:
            pixels = read_array(self.path, self._key)
            pixels = pixels[..., None] if pixels.ndim == 3 else pixels
            self._pixels = pixels.transpose(0, 3, 1, 2)
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}
