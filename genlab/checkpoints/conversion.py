"""`genlab.convert`: an official file becomes a generator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.checkpoints.companions import companion_hint, other_repository
from genlab.checkpoints.readers.base import READERS, Product, Reader
from genlab.errors import CheckpointError, reading
from genlab.registry import class_path


def convert(
    source: Path | str,
    format: str | None = None,  # noqa: A002  # as --format of the command
    config: Mapping[str, Any] | None = None,
) -> Product:
    """Read an official checkpoint. Nothing in the file is ever executed.

    Args:
        source: the official file, or a folder of diffusers.
        format: how to read it (`genlab.checkpoints.READERS` lists the names); guessed where the
            file tells.
        config: the official constructor's keyword arguments, for files that do not carry them. For
            EDM either flat, with an optional ``cls`` (default ``EDMPrecond``), or ``{"cls":
            "VPPrecond", "kwargs": {...}}``.

    Raises:
        CheckpointError: the file is missing, damaged, of an unknown format, or tries to run code.
        ConfigError: a config is needed and missing, or does not fit the official constructor.
        UnknownNameError: there is no such format.
    """
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"there is no file {path}; check the path")
    if not (path.is_file() or path.is_dir()):  # reading a pipe would wait for ever
        raise CheckpointError(f"{path} is neither a file nor a folder; give the checkpoint itself")
    name = format if format is not None else guess_format(path, config)
    reader: Reader = READERS.build(name)
    if path.is_dir() and not _reads_folders(reader):
        raise CheckpointError(f"{path} is a folder; the format {format!r} is one of files")
    product = _read(reader, path, config)
    if not isinstance(product, Product):
        raise CheckpointError(
            f"{READERS.title(name)} read {path} as a {class_path(type(product))}, not a generator"
        )
    return product


def _read(reader: Reader, path: Path, config: Mapping[str, Any] | None) -> Product:
    if not type(reader).__module__.startswith("genlab."):
        return reader.read(path, config)  # what goes wrong in a plug-in is the plug-in's to mend
    with reading(path):
        return reader.read(path, config)


def _reads_folders(reader: Reader) -> bool:
    return bool(getattr(reader, "reads_folders", False))


def is_readable_folder(path: Path) -> bool:
    """Whether this is a folder that a reader recognises."""
    if not path.is_dir():  # the usual case, in which no reader need be loaded
        return False
    readers = [reader for reader in READERS.build_all().values() if _reads_folders(reader)]
    return any(reader.recognises(path, None) for reader in readers)


def guess_format(path: Path, config: Mapping[str, Any] | None = None) -> str:
    """Ask every reader of files, or of folders; exactly one must recognise this one."""
    readers = READERS.build_all()
    candidates = {n: r for n, r in readers.items() if path.is_file() or _reads_folders(r)}
    names = [name for name, reader in candidates.items() if reader.recognises(path, config)]
    if len(names) == 1:
        return names[0]
    if path.is_dir() and not names:
        raise CheckpointError(
            f"{path} is a folder of no format that GenLab can tell; convert reads official files "
            "and folders of diffusers' models, load reads GenLab's own folders"
        )
    if not names and (hint := companion_hint(path) or other_repository(path)):
        raise CheckpointError(hint)
    problem = (
        f"could be any of {', '.join(names)}" if names else "is of no format that GenLab can tell"
    )
    raise CheckpointError(
        f"{path} {problem}; say which with 'genlab convert {path} -o FOLDER --format NAME' "
        f"(format= in Python): {', '.join(READERS)}"
    )
