"""Recognise finished samples: files with the size and hash that the run has recorded.

A file of the right name is not enough: a disk that lost power leaves empty ones, and others may
have put theirs there.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from genlab.data.writing import writers
from genlab.files import CHUNK

Fingerprint = tuple[int, str]
"""Bytes of a file, and the first 16 hexadecimal digits of its SHA-256."""

DIGITS = 16


def fingerprint(data: bytes) -> Fingerprint:
    """Size and hash of what a file is to hold."""
    return len(data), hashlib.sha256(data).hexdigest()[:DIGITS]


def fingerprint_of(path: Path) -> Fingerprint:
    """Size and hash of what a file holds."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()[:DIGITS]


class Finished:
    """The fingerprints of the files of one run; a file is hashed once, unless it changes.

    Attributes:
        told: name -> all fingerprints that a finished file of this name may have.
        is_old: whether a part was made by a GenLab that noted none: there a file counts that can be
            read.
    """

    def __init__(self) -> None:
        self.recorded: dict[str, set[Fingerprint]] = {}
        self.is_old = False
        self._seen: dict[str, tuple[tuple[int, int, int], bool]] = {}

    def learn(self, files: Mapping[str, Any] | None) -> None:
        """Add recorded fingerprints, by name; None is an old record without any."""
        if files is None:
            self.is_old = True
            return
        for name, (size, digest) in files.items():
            self.recorded.setdefault(str(name), set()).add((int(size), str(digest)))

    def holds(self, path: Path, name: str, can_be_read: Callable[[Path], bool]) -> bool:
        """Whether a file is there, whole, and of this run.

        Args:
            path: where it would be.
            name: under which it was noted.
            can_be_read: what decides for files of old runs.
        """
        try:
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns, len(self.recorded.get(name, ())))
            if self._seen.get(name, (None, False))[0] != state:
                self._seen[name] = state, self._is_sound(path, name, can_be_read)
        except OSError:
            return False
        return self._seen[name][1]

    def _is_sound(self, path: Path, name: str, can_be_read: Callable[[Path], bool]) -> bool:
        if not path.is_file() or path.stat().st_size == 0:
            return False
        if name not in self.recorded:
            return self.is_old and can_be_read(path)
        return fingerprint_of(path) in self.recorded[name]

    def wrote(self, name: str, written: Fingerprint) -> None:
        """Record a file that was just written."""
        self.recorded.setdefault(name, set()).add(written)


def in_manifest(names: Iterable[str], files: Mapping[str, Path]) -> dict[str, Any]:
    """Fingerprints of files, as short as a manifest wants them."""
    fingerprints = [fingerprint_of(files[name]) for name in names]
    return {
        "bytes": [size for size, _ in fingerprints],
        "sha256": " ".join(digest for _, digest in fingerprints),
    }


def from_manifest(names: Iterable[str], images: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `in_manifest` made, by name again; None where a manifest has none."""
    if "sha256" not in images:
        return None
    digests = str(images["sha256"]).split()
    return dict(zip(names, zip(images["bytes"], digests, strict=True), strict=True))


def is_picture(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file is a PNG of this shape, (H, W, C)."""
    try:
        return writers.decode_png(path.read_bytes()).shape == shape
    except Exception:  # Pillow raises what its decoders do
        return False


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as npz files are, too."""
    return zipfile.is_zipfile(path)
