"""Folders with idx files: MNIST, Fashion-MNIST and their relatives, gzipped or not.

An idx file is a big-endian header (two zero bytes, a type code, the number of axes, one 32-bit
length for each axis) and then the values in row-major order. Source: Y. LeCun,
http://yann.lecun.com/exdb/mnist, "File formats".
"""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from genlab.data.sources.base import ImageSource
from genlab.errors import DataError
from genlab.files import check_regular

SPLITS = {"train": "train", "test": "t10k", "t10k": "t10k"}
"""Our word for a split -> how its files begin."""

UNSIGNED_BYTE = 0x08
GZIP_MAX_RATIO = 1100
"""Deflate cannot shrink by more than about 1032, so a header that promises more is damaged."""

MAX_AXES = 4
"""Images (N, H, W), or (N, C, H, W)."""

_FILE = re.compile(r"(?P<split>[\w-]+)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?")

FASHION_MNIST = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_KNOWN = {
    ("train", 0x2ED6E46A): ("Fashion-MNIST", FASHION_MNIST),
    ("t10k", 0x242BC73F): ("Fashion-MNIST", FASHION_MNIST),
}
"""Data recognised by the CRC-32 of their label bytes, so that their classes have names anywhere."""


def is_idx_folder(path: Path) -> bool:
    """Whether a folder holds idx image files."""
    return any(
        match["what"] == "images"
        for file in path.iterdir()
        if (match := _FILE.fullmatch(file.name)) is not None
    )


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes.

    Args:
        path: the file; a name that ends in ``.gz`` is unpacked on the way.

    Raises:
        DataError: not an idx file, of another type, truncated, or longer than its header says.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        packed = path.suffix == ".gz"
        with gzip.open(path) if packed else path.open("rb") as file:
            shape = _read_header(file, path, size)
            count = math.prod(shape)
            if count > size * (GZIP_MAX_RATIO if packed else 1):
                raise DataError(
                    f"{path} is damaged: its header promises {count:,} bytes; fetch it again"
                )
            data = file.read(count + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) != count:
        which = "more than" if len(data) > count else f"{len(data):,} instead of"
        raise DataError(f"{path} holds {which} {count:,} bytes of data; fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_header(file: Any, path: Path, size: int) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an idx file ({size:,} bytes, no idx header); fetch it again"
        )
    if magic[2] != UNSIGNED_BYTE:
        raise DataError(
            f"{path} holds idx type {magic[2]:#04x}; only unsigned bytes (0x08) are images"
        )
    if not 1 <= magic[3] <= MAX_AXES:
        raise DataError(f"{path} holds an array of {magic[3]} axes; images have 3, labels 1")
    axes = file.read(4 * magic[3])
    if len(axes) < 4 * magic[3]:
        raise DataError(f"{path} ends inside its header; fetch it again")
    return struct.unpack(f">{magic[3]}I", axes)


class IdxSource(ImageSource):
    """One split of an idx folder; the pixels are read on first use, in each process for itself.

    Args:
        path: the folder.
        split: ``train`` or ``test``.
    """

    def __init__(self, path: Path, split: str = "train") -> None:
        self.path = path
        prefix = SPLITS.get(split, split)
        images, labels = _find(path, "images"), _find(path, "labels").get(prefix)
        if prefix not in images:
            raise DataError(
                f"{path} has no idx images of the split {split!r}; splits found: "
                f"{', '.join(images) or 'none'}"
            )
        self._file = images[prefix]
        self.split = "test" if prefix == SPLITS["test"] else split
        self._pixels: UInt8[np.ndarray, "N 1 H W"] | None = None
        self.read_all()  # what is wrong with the file is said when it is opened
        self.labels = None if labels is None else self._read_labels(labels)
        crc = 0 if self.labels is None else zlib.crc32(self.labels.astype(np.uint8).tobytes())
        name, self.class_names = _KNOWN.get((prefix, crc), (None, None))
        self.kind = f"{name} (idx files)" if name else "idx files"

    def _read_labels(self, file: Path) -> Int64[np.ndarray, " N"]:
        labels = read_idx(file)
        if labels.ndim != 1 or len(labels) != len(self):
            raise DataError(
                f"{file} holds labels of shape {labels.shape} for {len(self):,} images; "
                "the two files are not from the same set"
            )
        return labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.read_all())

    def name(self, index: int) -> str:
        """The file and the image's number in it."""
        return f"{self._file.name}[{index}]"

    def read(self, index: int) -> UInt8[np.ndarray, "C H W"]:
        """One image, (1, H, W)."""
        return self.read_all()[index]

    def read_all(self) -> UInt8[np.ndarray, "N C H W"]:
        """All images, (N, 1, H, W), or (N, C, H, W) where the file has four axes."""
        if self._pixels is None:
            pixels = read_idx(self._file)
            if pixels.ndim == 3:
                pixels = pixels[:, None]
            if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
                raise DataError(
                    f"{self._file} holds an array of shape {pixels.shape}; images are (N, H, W)"
                )
            self._pixels = pixels
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


def _find(path: Path, kind: str) -> dict[str, Path]:
    """Split -> file."""
    matches = [(_FILE.fullmatch(file.name), file) for file in sorted(path.iterdir())]
    return {m["split"]: file for m, file in matches if m is not None and m["what"] == kind}
