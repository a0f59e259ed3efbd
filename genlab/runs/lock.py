"""One run at a time in a folder."""

from pathlib import Path
from typing import IO

from genlab.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows has none; there nobody keeps two runs apart
    fcntl = None  # type: ignore[assignment]


def lock_folder(path: Path, where: str) -> IO[str]:
    """Lock a file until it is closed or the process ends, however it ends.

    Raises:
        OutputError: another process holds the lock, or the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise OutputError(f"cannot write to {where}: {error.strerror or error}") from error
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise OutputError(
                f"another run is writing to {where}; wait for it, stop it, "
                "or choose another folder with -o"
            ) from error
        except OSError:
            pass  # a network file system without locks
    return file
