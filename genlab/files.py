"""Atomic writing of files: under a temporary name beside the place, then renamed."""

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from genlab.errors import CheckpointError, DataError, GenLabError, OutputError, reason

try:
    import fcntl
except ImportError:  # Windows has none; there what a killed run leaves stays
    fcntl = None  # type: ignore[assignment]

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
    lock = _hold(temporary)
    try:
        yield temporary
        make_public(temporary)
        sync(temporary)  # else a power cut may leave the name with nothing behind it
        temporary.replace(path)
        with suppress(OSError):  # not every system lets a folder be synchronised
            sync(path.parent)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if lock is not None:
            lock.close()


def _hold(temporary: Path) -> IO[bytes] | None:
    """Mark a temporary file as in use, until it is closed or the process ends, however it ends."""
    if fcntl is None:
        return None
    try:
        file = temporary.open("rb")
    except OSError:
        return None
    with suppress(OSError):  # a network file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def remove_leftovers(path: Path) -> None:
    """Remove what runs that were killed while they wrote ``path`` have left beside it.

    What another process is writing just now stays, and so does everything where the file system
    knows no locks.
    """
    if fcntl is None:
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    beside: list[Path] = []
    with suppress(OSError):  # a folder that is not there yet, or cannot be listed
        beside = list(path.parent.iterdir())
    for left in beside:
        if pattern.fullmatch(left.name) and not is_special(left):
            with suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink(missing_ok=True)


def is_special(path: Path) -> bool:
    """Whether something other than a file or folder lies there: a pipe, a device, a socket.

    Opening one can wait forever, and reading one need not end. Links are followed.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_regular(path: Path, error: type[GenLabError] = DataError) -> None:
    """Refuse to open what `is_special`.

    Args:
        path: what is to be read; where nothing is, opening it says so.
        error: what is raised.
    """
    if is_special(path):
        raise error(f"{path} is a pipe or a device and is not opened; give a file, or remove it")


def sync(path: Path) -> None:
    """Have the system put a file, or a folder's names, on the disk before going on.

    Raises:
        OSError: the disk could not take it; not where a file system knows no such thing.
    """
    if os.name == "nt":  # where a file that is only read cannot be synchronised
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(handle)


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
    first = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=first):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder with -o"
        ) from error


def read_json_object(path: Path, cure: str = "fetch it again") -> dict[str, Any]:
    """Read a JSON object of a model's folder, which is untrusted input.

    Args:
        path: the file.
        cure: what to do about a bad one, for the message.

    Raises:
        CheckpointError: it is missing, larger than `MAX_JSON`, or holds no JSON object.
    """
    check_regular(path, CheckpointError)
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
