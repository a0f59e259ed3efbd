"""Folders of adapters: their files, how to find them, and those kept on this machine.

Nothing heavy is imported, so that names can be listed and completed at once.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genlab.checkpoints.bundled import bundled_names
from genlab.checkpoints.hub.fetch import locate
from genlab.checkpoints.zoo.catalogue import entries, home
from genlab.errors import CheckpointError, ConfigError, OutputError, UnknownNameError, nearest
from genlab.files import read_json_object
from genlab.saving.index import INDEX

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
METADATA = "genlab.json"
"""What GenLab knows of an adapter, where `CONFIG` is a file of peft."""
CARD = "README.md"
BASE = "base.json"
"""Of the folder of a fine-tuning run."""

DEPTH = 3
"""Folders below one that is searched for adapters."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, GenLab's or peft's, and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / INDEX).is_file()


def find_adapter(name: str) -> Path | None:
    """The folder of an adapter, by the name that it is kept under, by its path or its hub's name.

    Returns:
        None where this means no adapter. Names win over folders of the same name.

    Raises:
        CheckpointError: it is a fine-tuning run that has stored none yet.
    """
    kept = kept_adapters()
    if name in kept:
        return kept[name]
    path = Path(locate(name))
    if is_adapter(path):
        return path
    if (path / BASE).is_file() and (path / "config.yaml").is_file():
        raise CheckpointError(
            f"the fine-tuning run in {path} has stored no adapter yet; wait for its first snapshot "
            "(output.snapshot_kimg) or its end"
        )
    return None


def check_no_adapter(name: str) -> None:
    """Refuse an adapter where a base is meant.

    Raises:
        ConfigError: tells how to make it a model.
    """
    if find_adapter(name) is not None:
        raise ConfigError(
            f"{name} is an adapter, and a base must be a whole model; merge it first: 'genlab "
            f"adapter merge {name} -o merged/'"
        )


def kept_folder() -> Path:
    """Where adapters are kept by name: ``$GENLAB_HOME/adapters``."""
    return home() / "adapters"


def kept_adapters() -> dict[str, Path]:
    """Name -> folder of the adapters that are kept on this machine, sorted."""
    root = kept_folder()
    if not root.is_dir():
        return {}
    folders = {path.name: path for path in root.iterdir() if _NAME.fullmatch(path.name)}
    return {name: folders[name] for name in sorted(folders) if is_adapter(folders[name])}


def adapters_under(folder: Path) -> list[Path]:
    """Folders of adapters in a folder, itself included, at most `DEPTH` levels down; sorted.

    Hidden folders and what is inside of an adapter's folder are passed over.
    """

    def below(path: Path, depth: int) -> Iterator[Path]:
        if is_adapter(path):
            yield path
        elif depth:
            try:
                inner = [p for p in path.iterdir() if p.is_dir() and not p.is_symlink()]
            except OSError:  # one that may not be read hides nothing else
                return
            for each in inner:
                if not each.name.startswith("."):
                    yield from below(each, depth - 1)

    return sorted(below(folder, DEPTH))


def check_name(name: str) -> None:
    """Refuse a name that an adapter cannot be kept under.

    Raises:
        ConfigError: it is no plain word, or a model's.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of an adapter; take letters, digits, dots, dashes and "
            "underscores, and begin with a letter or digit (--name)"
        )
    if name in bundled_names() or name in entries():
        raise ConfigError(f"{name} is the name of a model; choose another one with --name")


def keep(folder: Path, name: str, *, replace: bool = False) -> Path:
    """Copy an adapter to where its name finds it; the training run beside it stays behind.

    Args:
        folder: of the adapter.
        name: that it is kept under.
        replace: whether it may take the place of another one.

    Returns:
        The new folder, which is whole or not there.

    Raises:
        ConfigError: the name does not do, or is taken.
        OutputError: it cannot be written.
    """
    check_name(name)
    target = kept_folder() / name
    if target.exists() and not replace:
        raise ConfigError(
            f"an adapter is kept as {name} already; choose another --name, or remove it with "
            f"'genlab adapter remove {name}'"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            for file in (TENSORS, METADATA, CARD, CONFIG):
                if (folder / file).is_file():
                    shutil.copyfile(folder / file, new / file)
            _settle_base(new)
            if target.exists():
                target.rename(Path(temporary) / "old")
            new.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _settle_base(folder: Path) -> None:
    """Write the path of a base in whole: the adapter will be used from other folders."""
    path = folder / (METADATA if (folder / METADATA).is_file() else CONFIG)
    values = read_json_object(path)
    base = values.get("base")
    if isinstance(base, str) and base not in [*bundled_names(), *entries()] and Path(base).exists():
        path.write_text(json.dumps({**values, "base": str(Path(base).resolve())}, indent=2) + "\n")


def forget(name: str) -> None:
    """Remove an adapter that is kept by name.

    Raises:
        UnknownNameError: none is.
        OutputError: it cannot be removed.
    """
    kept = kept_adapters()
    if name not in kept:
        raise UnknownNameError(f"no adapter is kept as {name!r}; {nearest(name, kept)}")
    try:
        shutil.rmtree(kept[name])
    except OSError as error:
        raise OutputError(f"cannot remove {kept[name]}: {error.strerror or error}") from error
