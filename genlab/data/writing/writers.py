"""Sets of images as files: PNG tree, EDM-style zip, npz in ADM's layout.

All bytes are a function of the images alone (no times, no host names), so equal runs give equal
files.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genlab.errors import DataError
from genlab.files import atomic_path, write_bytes

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""One image, (H, W, C), with C = 1 (grey) or 3 (RGB)."""

PER_FOLDER = 1000
"""Images in one subfolder: network file systems and file managers choke on many thousands."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def image_name(seed: int) -> str:
    """Where the image of a seed lies in a tree or zip (the names that EDM's tools use).

    >>> image_name(1012)
    '00001/img00001012.png'
    """
    return sample_name(seed, "img", "png")


def sample_name(seed: int, prefix: str, ending: str) -> str:
    """Where the sample of a seed lies in a tree or zip.

    Args:
        seed: of the sample.
        prefix: what the file's name begins with.
        ending: what it ends in, without the dot.
    """
    return f"{seed // PER_FOLDER:05d}/{prefix}{seed:08d}.{ending}"


def encode_png(pixels: Pixels) -> bytes:
    """One image as PNG, grey or RGB."""
    if pixels.shape[-1] not in (1, 3):
        raise DataError(
            f"an image with {pixels.shape[-1]} channels is no PNG, which is grey or RGB; "
            "choose the format npz"
        )
    buffer = io.BytesIO()
    to_pil(pixels).save(buffer, format="png")
    return buffer.getvalue()


def to_pil(pixels: Pixels) -> Image.Image:
    """One image for Pillow: mode L or RGB."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def decode_png(data: bytes) -> Pixels:
    """Undo `encode_png`."""
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def write_png(path: Path, pixels: Pixels) -> None:
    """Write one image, whole or not at all."""
    write_bytes(path, encode_png(pixels))


def dataset_json(names: Sequence[str], labels: Sequence[int] | None) -> str:
    """The labels of an EDM-style set, ``dataset.json``: ``{"labels": [[name, class], ...]}``."""
    pairs = None if labels is None else [list(p) for p in zip(names, labels, strict=True)]
    return json.dumps({"labels": pairs})


def write_zip(
    path: Path, images: Iterable[tuple[str, bytes]], labels: Sequence[int] | None
) -> None:
    """Write an EDM-style zip: uncompressed members, readable by seeking, and ``dataset.json``.

    Args:
        path: the zip.
        images: names and encoded bytes.
        labels: one class for each image, or None for a set without labels.
    """
    names = []
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, data in images:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)
            names.append(name)
        archive.writestr(zipfile.ZipInfo("dataset.json", _EPOCH), dataset_json(names, labels))


def write_npz(
    path: Path,
    images: Iterator[Pixels],
    shape: tuple[int, int, int, int],
    labels: Sequence[int] | None,
) -> None:
    """Write an npz in the layout of ADM's sample files, image by image, so that memory stays small.

    Args:
        path: the npz; ``arr_0`` holds the images, uint8 (N, H, W, C), ``arr_1`` the classes, int64
            (N,).
        images: N images.
        shape: (N, H, W, C).
        labels: one class for each image; None leaves ``arr_1`` out.
    """
    beside = {} if labels is None else {"arr_1": labels}
    write_arrays(path, Rows("arr_0", "|u1", shape, images), beside)


@dataclass(frozen=True)
class Rows:
    """An array that is written row by row.

    Attributes:
        name: its key in the npz.
        descr: its type of numbers, as NumPy writes it.
        shape: of the whole.
        rows: along its first axis.
    """

    name: str
    descr: str
    shape: tuple[int, ...]
    rows: Iterable[np.ndarray[Any, np.dtype[Any]]]


def write_arrays(path: Path, array: Rows, beside: Mapping[str, Sequence[int]]) -> None:
    """Write an npz of one large array, row by row, and lists of whole numbers beside it."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        name = f"{array.name}.npy"
        with archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as member:
            header = {"descr": array.descr, "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(member, header)
            for row in array.rows:
                member.write(np.ascontiguousarray(row).data)
        for key, numbers in beside.items():
            with archive.open(zipfile.ZipInfo(f"{key}.npy", _EPOCH), "w") as member:
                np.lib.format.write_array(member, np.asarray(numbers, dtype=np.int64))


def read_first(
    path: Path,
    count: int,
    decode: Callable[[bytes], np.ndarray[Any, np.dtype[Any]]] = decode_png,
    array: str = "arr_0",
) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    """The first samples of a zip or npz that `write_zip` or `write_arrays` made.

    Args:
        path: the archive.
        count: how many, at most.
        decode: makes a sample of a zip's member.
        array: the key of an npz's samples.
    """
    with zipfile.ZipFile(path) as archive:
        if path.suffix == ".zip":
            for name in archive.namelist()[:count]:
                yield decode(archive.read(name))
            return
        with archive.open(f"{array}.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            size = int(np.prod(shape[1:])) * dtype.itemsize
            for _ in range(min(count, shape[0])):
                yield np.frombuffer(member.read(size), dtype).reshape(shape[1:])
