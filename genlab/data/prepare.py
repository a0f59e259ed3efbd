"""Pack any image source into an EDM-style zip: one size, one number of channels, no loss."""

import io
import json
import multiprocessing
import os
import signal
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
from jaxtyping import UInt8

from genlab.data.conform import Conform
from genlab.data.sources.base import ImageSource
from genlab.data.sources.manifest import MANIFEST
from genlab.data.sources.opening import open_source
from genlab.data.writing.writers import image_name, to_pil
from genlab.errors import ConfigError, DataError, OutputError
from genlab.files import atomic_path, remove_leftovers

ENCODINGS = ("png", "webp")

CHUNK = 32
"""Images that a worker takes at a time."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold: equal input, equal bytes


@dataclass(frozen=True)
class Prepared:
    """What was packed.

    Attributes:
        path: the zip.
        num_images: how many it holds.
        image_shape: (C, H, W) of each.
        num_classes: 0 without labels.
        skipped: the images that could not be read, and why.
    """

    path: Path
    num_images: int
    image_shape: tuple[int, ...]
    num_classes: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Packed:
    """One image ready for the zip, or the reason why there is none."""

    data: bytes = b""
    shape: tuple[int, ...] = ()
    broken: str = ""


@dataclass(frozen=True)
class _Job:
    """What a worker has to know; the open source travels with it."""

    source: ImageSource
    conform: Conform
    encoding: str

    def pack(self, indices: range) -> list[_Packed]:
        return [self._pack_one(index) for index in indices]

    def _pack_one(self, index: int) -> _Packed:
        try:
            pixels = self.source.read(index)
        except DataError as error:
            return _Packed(broken=str(error))
        # Only damage can be skipped: a size that the settings refuse concerns the whole set.
        pixels = self.conform(pixels, f"{self.source.path}: {self.source.name(index)}")
        return _Packed(encode(pixels, self.encoding), pixels.shape)


def encode(pixels: UInt8[np.ndarray, "C H W"], encoding: str) -> bytes:
    """One image as a lossless file; C = 1 or 3.

    Raises:
        ConfigError: grey as WebP, which would come back as RGB.
    """
    if encoding == "webp" and len(pixels) == 1:
        raise ConfigError("WebP knows no grey images; choose the encoding png, or RGB (channels 3)")
    buffer = io.BytesIO()
    image = to_pil(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if encoding == "webp":
        image.save(buffer, format="webp", lossless=True)
    else:
        image.save(buffer, format="png")
    return buffer.getvalue()


def prepare(
    source: str | Path | ImageSource,
    dest: str | Path,
    *,
    conform: Conform | None = None,
    encoding: str = "png",
    split: str = "train",
    workers: int = 1,
    skip_broken: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """Write the images of a source into a zip that trains as it is.

    The zip holds ``00000/img00000000.png`` and so on, stored, and a dataset.json with the labels
    and class names. Its bytes depend on the images alone, not on time or on ``workers``; it is
    there whole or not at all.

    Args:
        source: anything that `open_source` takes, or an open source.
        dest: the zip to write.
        conform: what to do with sizes, channels and transparency.
        encoding: ``png`` (read everywhere) or ``webp`` (RGB only; a fifth smaller on
            CIFAR-10).
        split: which part of the source, where there are several.
        workers: how many processes decode and encode; 1 does it in this one.
        skip_broken: leave images out that cannot be read, instead of stopping.
        overwrite: replace ``dest``.
        progress: called with the number of images done since the last call.

    Raises:
        DataError: an image is damaged (without ``skip_broken``) or of another shape than the first.
        OutputError: ``dest`` is there already or cannot be written.
        ConfigError: a setting that makes no sense.
    """
    dest = Path(dest)
    _check_settings(dest, encoding, workers, overwrite)
    if not isinstance(source, ImageSource):
        source = open_source(source, split)
    job = _Job(source, conform or Conform(), encoding)
    remove_leftovers(dest)
    with atomic_path(dest) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        return _write(archive, job, dest, workers, skip_broken, progress)


def _check_settings(dest: Path, encoding: str, workers: int, overwrite: bool) -> None:
    if dest.suffix.lower() != ".zip":
        raise ConfigError(f"{dest} does not end in .zip; the images go into a zip")
    if encoding not in ENCODINGS:
        raise ConfigError(
            f"there is no lossless encoding {encoding!r}; choose one of {', '.join(ENCODINGS)}"
        )
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    if dest.is_dir() or (dest.exists() and not overwrite):
        cure = "choose another name" if dest.is_dir() else "choose another name or add --overwrite"
        raise OutputError(f"{dest} is there already; {cure}")


def _write(
    archive: zipfile.ZipFile,
    job: _Job,
    dest: Path,
    workers: int,
    skip_broken: bool,
    progress: Callable[[int], None] | None,
) -> Prepared:
    source = job.source
    names: list[str] = []
    kept: list[int] = []
    skipped: list[str] = []
    shape: tuple[int, ...] = ()
    for index, packed in enumerate(_pack_all(job, workers)):
        if progress is not None:
            progress(1)
        if packed.broken:
            if not skip_broken:
                raise DataError(f"{packed.broken}, or leave such images out with --skip-broken")
            skipped.append(packed.broken)
            continue
        shape = shape or packed.shape
        _check_shape(packed.shape, shape, source, index)
        names.append(image_name(len(names)).removesuffix("png") + job.encoding)
        kept.append(index)
        _store(archive, names[-1], packed.data)
    if not names:
        raise DataError(f"{source.path} has no image that can be read; there is nothing to pack")
    labels = None if source.labels is None else source.labels[kept].tolist()
    _store(archive, MANIFEST, _manifest(names, labels, source.class_names))
    return Prepared(dest, len(names), shape, source.num_classes, tuple(skipped))


def _check_shape(
    shape: tuple[int, ...], first: tuple[int, ...], source: ImageSource, index: int
) -> None:
    if shape[0] != first[0]:
        raise DataError(
            f"{source.path}: {source.name(index)} has {shape[0]} channels but the first image "
            f"{first[0]}; choose channels (--channels 3 or 1)"
        )
    if shape != first:
        raise DataError(
            f"{source.path}: {source.name(index)} is {shape[2]}x{shape[1]} but the first image "
            f"{first[2]}x{first[1]}; choose a size and a fit (--size 32 --fit crop)"
        )


def _manifest(
    names: list[str], labels: list[int] | None, class_names: tuple[str, ...] | None
) -> bytes:
    content: dict[str, object] = {"labels": None}
    if labels is not None:
        content["labels"] = [[name, label] for name, label in zip(names, labels, strict=True)]
        if class_names is not None:
            content["class_names"] = list(class_names)
    return json.dumps(content, ensure_ascii=False).encode()


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    info.create_system = 3  # Unix, wherever it is written
    archive.writestr(info, data)


# --- workers ----------------------------------------------------------------------------------


def _pack_all(job: _Job, workers: int) -> Iterator[_Packed]:
    """All images in order, a bounded number of them waiting at any time."""
    count = len(job.source)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            yield from job.pack(chunk)
        return
    # Fresh processes: a forked copy of a process with threads (torch's) can hang.
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(chunks))
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(job,))
    try:
        yield from _in_order(pool, chunks, 4 * workers)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, perhaps for lack of memory; try fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[range], waiting: int
) -> Iterator[_Packed]:
    pending: deque[Future[list[_Packed]]] = deque()
    for chunk in chunks:
        pending.append(pool.submit(_pack, chunk))
        if len(pending) >= waiting:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()


_job: _Job | None = None
"""The job of this worker process."""


def _start(job: _Job) -> None:
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    Thread(target=_end_with_parent, daemon=True).start()
    _job = job


def _end_with_parent() -> None:
    """Wait for the parent's end: one that is killed cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _pack(chunk: range) -> list[_Packed]:
    assert _job is not None
    return _job.pack(chunk)
