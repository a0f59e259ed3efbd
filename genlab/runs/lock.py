"""One run at a time in a folder."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from genlab.errors import OutputError


def lock_folder(path: Path, where: str) -> BaseFileLock:
    """Lock a file until it is released or the process ends, however it ends.

    Args:
        path: of the lock file.
        where: what is locked, for the message.

    Raises:
        OutputError: another process holds the lock, or the file cannot be made.
    """
    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another run is writing to {where}; wait for it, stop it, "
            "or choose another folder with -o"
        ) from error
    except NotImplementedError:
        pass  # a network file system without locks
    except OSError as error:
        raise OutputError(f"cannot write to {where}: {error.strerror or error}") from error
    return lock
