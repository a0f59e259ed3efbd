"""`genlab.convert`: an official file becomes a generator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.checkpoints.base import READERS, Product, Reader
from genlab.errors import CheckpointError


def convert(
    source: Path | str,
    format: str | None = None,  # noqa: A002
    config: Mapping[str, Any] | None = None,
) -> Product:
    """Read an official checkpoint. Nothing in the file is ever executed.

    Args:
        source: the official file.
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
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder; convert reads official files, load reads GenLab's folders"
        )
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; check the path")
    reader: Reader = READERS.build(format if format is not None else guess_format(path, config))
    return reader.read(path, config)


def guess_format(path: Path, config: Mapping[str, Any] | None = None) -> str:
    """Ask every reader; exactly one must recognise the file."""
    names = [name for name in READERS if READERS.build(name).recognises(path, config)]
    if len(names) == 1:
        return names[0]
    said = (
        f"could be any of {', '.join(names)}" if names else "is of no format that GenLab can tell"
    )
    raise CheckpointError(
        f"{path} {said}; say which with format=..., known formats: {', '.join(READERS)}"
    )
