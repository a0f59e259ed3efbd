"""Nothing half written: a file is made under a temporary name beside its place, then renamed."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genlab.errors import CheckpointError, OutputError, reason

CHUNK = 1 << 20

MAX_JSON = 1 << 24
"""Bytes of a JSON file from elsewhere; those that list a large model's weights have a tenth."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` if the block ends well and is removed if it does not.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full; ``path`` is as it
            was before.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A unique name, so that two processes writing the same file cannot mix their bytes.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        make_public(temporary)
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_public(path: Path) -> None:
    """Give a file the permissions of any new file; mkstemp and safetensors make private ones."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def check_writable(folder: Path) -> None:
    """Find out before long work whether files can be made in a folder, which need not exist yet.

    Raises:
        OutputError: they cannot.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder with -o"
        ) from error


def read_json_object(path: Path, cure: str = "fetch it again") -> dict[str, Any]:
    """What stands in a JSON file that belongs to a model, and may come from anybody.

    Args:
        path: the file.
        cure: what to do about a bad one, for the message.

    Raises:
        CheckpointError: it is missing, larger than `MAX_JSON`, or holds no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("it is too large")
        if not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("it is no ordinary file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}; {cure}") from error
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); {cure}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must be a JSON object; {cure}")
    return content


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file at once or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file at once or not at all."""
    write_bytes(path, text.encode())


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def text_sha256(value: Any) -> str:
    """The SHA-256 of a value as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def content_sha256(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files and their names."""
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return text_sha256([[file.relative_to(path).as_posix(), sha256(file)] for file in files])
