"""Open any image source by its path."""

import zipfile
from pathlib import Path

from genlab.data.sources.base import ImageSource
from genlab.data.sources.containers import Container, FolderContainer, ZipContainer
from genlab.data.sources.idx import IdxSource, is_idx_folder
from genlab.data.sources.members import MemberSource
from genlab.data.sources.npz import NpzSource
from genlab.errors import DataError, reading
from genlab.files import check_regular


def open_source(path: str | Path, split: str = "train") -> ImageSource:
    """Open images on disk, whatever their format.

    Args:
        path: a folder of images (one folder for each class, or any layout with a dataset.json), a
            zip of the same, a folder with idx files, or an npz file.
        split: which part, where there are several: ``train`` or ``test``.

    Raises:
        DataError: nothing there, nothing that can be read as images, or files laid out so that
            labels would be wrong.
    """
    path = Path(path).expanduser()
    with reading(path, DataError, "fetch it again"):
        if has_files(path):
            return MemberSource(open_container(path), split)
        return IdxSource(path, split) if path.is_dir() else NpzSource(path, split)


def has_files(path: Path) -> bool:
    """Whether the images are files of their own (in a folder or zip), not rows of an array.

    Raises:
        DataError: there is nothing at ``path``, or a pipe or device.
    """
    if not path.exists():
        raise DataError(f"there is no {path}; check the path of the data")
    if not path.is_dir():
        check_regular(path)
    return not is_idx_folder(path) if path.is_dir() else path.suffix != ".npz"


def open_container(path: Path) -> Container:
    """The files of a folder or zip.

    Raises:
        DataError: neither of them.
    """
    if path.is_dir():
        return FolderContainer(path)
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return ZipContainer(path)
    raise DataError(
        f"{path} is not a data set; give a folder of images, a zip, a folder with idx files or an "
        "npz"
    )
