"""Files in a folder or a zip, read by name without unpacking anything to disk."""

import os
import re
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from genlab.errors import DataError, reason
from genlab.files import check_regular

MAX_MEMBER_BYTES = 2**28
"""The largest single file that is read; a training image is far smaller, a zip bomb is not."""


class Container(ABC):
    """Named files; names have forward slashes, and those of folders end in one.

    Attributes:
        path: of the whole.
        special: pipes, devices and sockets that `names` came upon; they are never opened.
    """

    path: Path
    special: tuple[str, ...] = ()

    @abstractmethod
    def names(self) -> list[str]:
        """Every file and folder inside."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            DataError: it cannot be read, is damaged, or is larger than `MAX_MEMBER_BYTES`.
        """


def _check_size(size: int, where: str) -> None:
    if size > MAX_MEMBER_BYTES:
        raise DataError(
            f"{where} has {size / 2**20:,.0f} MiB, more than the {MAX_MEMBER_BYTES >> 20} MiB that "
            "one image may take; remove it"
        )


class FolderContainer(Container):
    """A folder; links to folders are followed, each place once, and special files passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """Every file and folder below, with a path relative to it."""
        names: list[str] = []
        special: list[str] = []
        seen = {os.path.realpath(self.path)}
        pending = [""]
        while pending:
            prefix = pending.pop()
            for entry in _entries(self.path / prefix):
                name = prefix + entry.name
                if _is_folder(entry):
                    place = os.path.realpath(entry.path)
                    if place not in seen:
                        seen.add(place)
                        names.append(f"{name}/")
                        pending.append(f"{name}/")
                elif _is_file(entry):
                    names.append(name)
                else:
                    special.append(name)
        self.special = tuple(sorted(special))
        return names

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        file = self.path / name
        check_regular(file)
        try:
            _check_size(file.stat().st_size, str(file))
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder: real folders before links, which may lead to the same place."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise DataError(f"cannot look into {folder}: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link that leads nowhere: reading that says so."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def plain_path(name: str) -> str:
    r"""A member's name as seen outside.

    Some Windows programs write backslashes, others begin with ``./`` or a slash. Nothing is ever
    unpacked to disk, so a name that climbs out of a folder does no harm.

    >>> plain_path(".\\cats\\1.png")
    'cats/1.png'
    """
    return re.sub(r"^(\.?/)+", "", name.replace("\\", "/"))


class ZipContainer(Container):
    """A zip, stored or deflated.

    Each process opens the file for itself on first use: a handle shared by forked loader workers
    would have one file position between them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._owner = 0
        self._members = {plain_path(name): name for name in self._open().namelist()}

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None or self._owner != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except OSError as error:
                raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
            except Exception as error:  # a damaged directory makes zipfile raise many kinds
                raise DataError(
                    f"{self.path} is not a zip or is truncated ({reason(error)}); fetch or pack it "
                    "again"
                ) from error
            self._owner = os.getpid()
        return self._zip

    def names(self) -> list[str]:
        """Every member."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """The bytes of one member."""
        archive = self._open()
        try:
            info = archive.getinfo(self._members[name])
            _check_size(info.file_size, f"{self.path}: {name}")
            return archive.read(info)
        except DataError:
            raise
        except (RuntimeError, NotImplementedError) as error:  # encrypted; unknown compression
            raise DataError(
                f"{self.path}: {name} cannot be unpacked ({error}); pack it stored or deflated, "
                "without a password"
            ) from error
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        except Exception as error:  # each kind of compression has errors of its own
            raise DataError(
                f"{self.path}: {name} is damaged ({reason(error)}); fetch or pack the zip again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_owner": 0}
