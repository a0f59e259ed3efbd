"""Arrays in an npz file, read safely: headers are checked against the file's size."""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from genlab.errors import DataError, printable
from genlab.files import check_regular, is_special

BinaryFile = zipfile.ZipExtFile | io.BufferedReader
Array = np.ndarray[Any, np.dtype[Any]]

MAX_RATIO = 1100
"""Deflate cannot shrink by more than about 1032, so a size that promises more is damaged."""

MAX_ARRAYS = 10_000
"""Arrays in one file; each header takes a moment."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Header:
    """The header of one array of a file.

    Attributes:
        shape: of the array.
        dtype: of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def read_headers(path: Path) -> dict[str, Header]:
    """Name -> header of every array in an npz file, none of which is read.

    Raises:
        DataError: the file is damaged, or promises more than it holds.
    """
    check_regular(path)
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(members) > MAX_ARRAYS:
                raise ValueError(f"it has {len(members):,} arrays")
            headers = {}
            for info in members:
                name = info.filename.removesuffix(".npy")
                if info.file_size > size * MAX_RATIO:
                    raise ValueError(f"{printable(name)} promises {info.file_size:,} bytes")
                with archive.open(info) as file:
                    member = cast(zipfile.ZipExtFile, file)
                    headers[name] = _read_header(member, info.filename, info.file_size)
            return headers
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile, what unpacks its members, and NumPy have many kinds
        why = printable(str(error))
        raise DataError(f"{path} is not a sound npz file ({why}); fetch it again") from error


def read_npy(path: Path, *, mapped: bool = False) -> Array:
    """The array in an npy file; pickled objects are never loaded.

    Args:
        path: the file.
        mapped: map it into memory rather than read it.

    Raises:
        ValueError: it is damaged, or promises more than it holds.
        OSError: it cannot be read.
    """
    if is_special(path):
        raise ValueError("it is a pipe or a device")
    with path.open("rb") as file:
        _read_header(file, path.name, path.stat().st_size)
    array: Array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return array


def _read_header(file: BinaryFile, name: str, size: int) -> Header:
    """The header of an array that takes so many bytes; a ValueError says what is wrong with it."""
    name = printable(name)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name} has npy format {version}")
    try:
        shape, _, dtype = _HEADERS[version](file)
    except Exception as error:  # NumPy evaluates the header, and Python's parser has many errors
        raise ValueError(f"the header of {name} cannot be read") from error
    if not all(isinstance(axis, int) and axis >= 0 for axis in shape):
        raise ValueError(f"{name} has the shape {printable(str(shape))}")
    promised, stored = math.prod(shape) * dtype.itemsize, size - file.tell()
    # Objects are pickled, so their bytes are not those of an array; none is ever loaded.
    if not dtype.hasobject and promised != stored:
        claim = printable(f"{promised:,}")
        raise ValueError(f"the header of {name} promises {claim} bytes, there are {stored:,}")
    return Header(tuple(shape), dtype)


def read_array(path: Path, name: str) -> Array:
    """One array of a file that `read_headers` found sound; pickled objects are never loaded.

    Raises:
        DataError: it is damaged, or larger than the memory.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            array: Array = file[name]
            return array
    except MemoryError as error:
        raise DataError(
            f"{path}: {printable(name)} is larger than the memory; store the images as files"
        ) from error
    except Exception as error:  # of whatever kind, as in `read_headers`
        why = printable(str(error))
        raise DataError(f"{path}: {printable(name)} is damaged ({why}); fetch it again") from error
