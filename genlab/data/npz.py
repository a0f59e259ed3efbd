"""Images in one npz file, laid out as ADM's samples: ``arr_0`` (N, H, W, C), ``arr_1`` (N,).

Other names are taken, too: the images are the one array of four (or three) axes and type uint8, the
labels the one integer array with an entry for each image.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genlab.data.base import ImageSource
from genlab.errors import DataError

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
"""What zipfile and NumPy raise over changed bytes: damage can look like an unknown version."""


class NpzSource(ImageSource):
    """An npz file; the images are read on first use, in each process for itself.

    Args:
        path: the file. Pickled objects in it are never loaded.
    """

    kind = "npz array"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.class_names = None
        arrays = self._headers()
        self._key = self._find_images(arrays)
        self._shape = arrays[self._key][0]
        self._pixels: UInt8[np.ndarray, "N C H W"] | None = None
        self.labels = self._read_labels(arrays)

    def _headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of each array, without reading any."""
        found = {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.namelist():
                    if member.endswith(".npy"):
                        with archive.open(member) as file:
                            found[member.removesuffix(".npy")] = _read_header(file)
        except DAMAGED as error:
            raise DataError(
                f"{self.path} is not a sound npz file ({error}); fetch it again"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        return found

    def _find_images(self, arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
        fitting = [
            key
            for key, (shape, dtype) in arrays.items()
            if dtype == np.uint8 and _is_batch(shape) and 0 not in shape
        ]
        if len(fitting) == 1 or "arr_0" in fitting:
            return "arr_0" if "arr_0" in fitting else fitting[0]
        listed = ", ".join(f"{k} {s[1]} {s[0]}" for k, s in arrays.items()) or "nothing"
        raise DataError(
            f"{self.path} has no images: wanted is arr_0 of type uint8 and shape (N, H, W, 1 or "
            f"3), found {listed}"
        )

    def _read_labels(
        self, arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
        count = self._shape[0]
        fitting = [k for k, (s, d) in arrays.items() if s == (count,) and d.kind in "iu"]
        if not fitting:
            return None
        labels = self._load("arr_1" if "arr_1" in fitting else fitting[0]).astype(np.int64)
        if labels.min() < 0:
            raise DataError(f"{self.path} holds the label {labels.min()}; labels start at 0")
        return labels

    def _load(self, key: str) -> np.ndarray[Any, np.dtype[Any]]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return file[key]
        except (*DAMAGED, OSError) as error:
            raise DataError(f"{self.path}: {key} is damaged ({error}); fetch it again") from error

    def __len__(self) -> int:
        return self._shape[0]

    def name(self, index: int) -> str:
        """The array and the image's number in it."""
        return f"{self._key}[{index}]"

    def read(self, index: int) -> UInt8[np.ndarray, "C H W"]:
        """One image."""
        return self.read_all()[index]

    def read_all(self) -> UInt8[np.ndarray, "N C H W"]:
        """All images, (N, C, H, W)."""
        if self._pixels is None:
            pixels = self._load(self._key)
            pixels = pixels[..., None] if pixels.ndim == 3 else pixels
            self._pixels = pixels.transpose(0, 3, 1, 2)
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


def _is_batch(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"npy format {version}")
    shape, _, dtype = read(file)
    return shape, dtype
