"""Which files of a folder are published: those that coming down takes, and what explains them.

A list of what goes up, never of what stays: states of training, pickles, scripts and hidden files
are in no list.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.checkpoints.hub.kinds import check_kind
from genlab.checkpoints.hub.layout import CARD, Layout, layout_of
from genlab.errors import CheckpointError, ConfigError, reading
from genlab.files import MAX_JSON, read_json_object

RECORDS = "records"
LOG = "log.jsonl"

_PICTURE = re.compile(r"!\[[^\]\n]*\]\(([A-Za-z0-9_][A-Za-z0-9_.-]*\.(?:png|jpg|jpeg|webp))\)")
"""One that a card shows out of its own folder."""

_CURE = "save the model again"


@dataclass(frozen=True, kw_only=True)
class Published:
    """The files of a folder that are published.

    Attributes:
        layout: which kind of folder it is.
        metadata: what its main file says.
        paths: where a file stands in the repository -> the file; the card is among them only where
            the folder has one.
        left: how many others stay behind, in all folders below.
    """

    layout: Layout
    metadata: dict[str, Any]
    paths: dict[str, Path]
    left: int

    @property
    def card(self) -> str | None:
        """The text of the folder's own card."""
        path = self.paths.get(CARD)
        return None if path is None else path.read_bytes()[:MAX_JSON].decode(errors="replace")


def may_be_ours(path: str, layout: Layout) -> bool:
    """Whether a file of a repository is one that a push of this kind could have put there."""
    record = re.fullmatch(rf"{RECORDS}/[a-z0-9.-]+\.json", path)
    return layout.wants(path) or path == LOG or record is not None


def published_files(folder: Path) -> Published:
    """Look a folder through for what is published; each file is checked as one of a stranger's.

    Raises:
        ConfigError: it is a training run, or no folder.
        CheckpointError: it holds no model that GenLab reads, a link, or a file that is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; give the one that holds the model")
    there = dict(_below(folder))
    layout = layout_of(there)
    if layout is None:
        raise _no_model(folder)
    wanted = {name: path for name, path in there.items() if layout.wants(name) or name == LOG}
    if CARD in wanted:
        text = wanted[CARD].read_bytes()[:MAX_JSON].decode(errors="replace")
        shown = {name: there[name] for name in _PICTURE.findall(text) if name in there}
        wanted |= shown
    for name, path in wanted.items():
        _check(name, path)
    metadata = check_kind(layout, folder, str(folder))
    if not any(name.endswith(".safetensors") for name in wanted):
        raise CheckpointError(f"{folder} holds no weights as safetensors; {_CURE}")
    left = sum(1 for path in folder.rglob("*") if path.is_file()) - len(wanted)
    return Published(
        layout=layout, metadata=metadata, paths=dict(sorted(wanted.items())), left=left
    )


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of a folder and of the folders in it, by their paths with forward slashes."""
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            yield from ((f"{path.name}/{each.name}", each) for each in path.iterdir())
        else:
            yield path.name, path


def _no_model(folder: Path) -> ConfigError | CheckpointError:
    if (folder / "config.yaml").is_file():
        return ConfigError(
            f"{folder} is a training run, which holds states beside models; write the model first: "
            f"'genlab train export {folder} -o FOLDER', then push that folder"
        )
    return CheckpointError(
        f"{folder} holds no model: there is no model_index.json, adapter_config.json or "
        "config.json; give the folder that genlab train export, finetune or convert wrote"
    )


def _check(name: str, path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(
            f"{path} is no ordinary file, and where a link leads is not published; put the file "
            "itself there"
        )
    if name.endswith(".json"):
        read_json_object(path, _CURE)
    elif name.endswith(".safetensors"):
        from safetensors import safe_open

        with reading(path, cure=_CURE), safe_open(path, framework="np"):
            pass  # its head is read, and held against its size
