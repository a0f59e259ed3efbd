"""The catalogue of the zoo: metadata of official checkpoints, and which are on this machine."""

import json
import os
import re
import reprlib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from genlab.errors import (
    CheckpointError,
    ConfigError,
    UnknownNameError,
    nearest,
    printable,
    reason,
)
from genlab.files import read_json_object, write_text
from genlab.saving.index import INDEX


@dataclass(kw_only=True)
class Score:
    """A published score and what it was measured with.

    Attributes:
        metric: its name.
        value: its value.
        setting: sampler, steps, number of images.
        source: where it was published.
    """

    metric: str
    value: float
    setting: str
    source: str

    def __str__(self) -> str:
        return f"{self.metric} {self.value:g} ({self.setting}; {self.source})"


@dataclass(kw_only=True)
class ZooEntry:
    """The metadata of one official checkpoint: the schema of an entry of zoo.yaml.

    Attributes:
        url: where the publisher keeps it.
        format: which reader reads it.
        licence: in words.
        licence_id: as hubs write it.
        commercial_use: whether the licence allows it.
        paper: who made it.
        data: what it was trained on.
        network: the architecture in words.
        image_shape: (C, H, W).
        num_classes: 0 = unconditional.
        class_names: one a class, where they are known.
        sha256: of the file, where it was verified; None means trust on first use.
        config: what the published training command gives the constructor; None where that is not
            published.
        needs_config: whether the file holds tensors only, so that reading it takes ``config``.
        config_url: where the publisher keeps the config, as JSON, that reading the file takes.
        autoencoder: repository on the Hugging Face hub of the one whose latents the model makes.
        direct: whether ``url`` is the file itself; False for pages that a person has to visit.
        note: what else one should know, in a sentence.
        sampler: how its authors sample from it.
        scores: published ones.
    """

    url: str
    format: str
    licence: str
    licence_id: str
    commercial_use: bool
    paper: str
    data: str
    network: str
    image_shape: list[int]
    num_classes: int = 0
    class_names: list[str] | None = None
    sha256: str | None = None
    config: dict[str, Any] | None = None
    needs_config: bool = False
    config_url: str | None = None
    autoencoder: str | None = None
    direct: bool = True
    note: str | None = None
    sampler: dict[str, Any] | None = None
    scores: list[Score] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Name of the official file."""
        return urlsplit(self.url).path.rpartition("/")[2]


@cache
def entries() -> dict[str, ZooEntry]:
    """Every checkpoint of the zoo by name, in the order of the table."""
    text = files("genlab.checkpoints.zoo").joinpath("zoo.yaml").read_text(encoding="utf-8")
    # The package's own table, which a test holds against the types: a command that lists names does
    # not wait for that.
    safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    models = yaml.load(text, safe)["models"]  # noqa: S506 - both build plain values alone
    return {
        name: ZooEntry(**{**values, "scores": [Score(**each) for each in values.get("scores", [])]})
        for name, values in models.items()
    }


def find(name: str) -> ZooEntry:
    """One entry.

    Raises:
        UnknownNameError: the zoo has no such model; names the nearest.
    """
    table = entries()
    if name not in table:
        raise UnknownNameError(f"the zoo has no model {name!r}; {nearest(name, table)}")
    return table[name]


def home() -> Path:
    """Where fetched models are kept: ``$GENLAB_HOME``, by default ``~/.cache/genlab``.

    Raises:
        ConfigError: the variable names something that can be no folder.
    """
    text = os.environ.get("GENLAB_HOME") or "~/.cache/genlab"
    try:
        folder = Path(text).expanduser()
        usable = folder.is_dir() or not folder.exists()
    except (RuntimeError, OSError, ValueError) as error:  # no such user, too long, not readable
        raise ConfigError(
            f"GENLAB_HOME={text} can be no folder ({reason(error)}); set it to a folder that you "
            "may write"
        ) from error
    if not usable:
        raise ConfigError(f"GENLAB_HOME={text} is no folder; set it to one that you may write")
    return folder


def model_folder(name: str) -> Path:
    """Where the cache keeps a converted model, pulled or not."""
    return home() / "zoo" / name


def pulled_folder(name: str) -> Path | None:
    """The converted model in the cache, if it has been pulled."""
    folder = model_folder(name)
    return folder if (folder / INDEX).is_file() else None


def checksums_file() -> Path:
    """Where the checksums of first downloads are kept."""
    return home() / "zoo" / "checksums.json"


def _recorded() -> dict[str, str]:
    """Checksums of first downloads, by address.

    A file that was cut short counts as none; the next download writes it anew.

    Raises:
        CheckpointError: it records something that is no checksum.
    """
    path = checksums_file()
    try:
        checksums = read_json_object(path)
    except CheckpointError:
        return {}
    for url, value in checksums.items():
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise CheckpointError(
                f"{path} records {reprlib.repr(value)} for {printable(url, 200)}, which is no "
                f"SHA-256; remove the line, and the next download of that file is trusted"
            )
    return checksums


def recorded_checksum(entry: ZooEntry) -> str | None:
    """The checksum of this checkpoint's first download here, if there was one.

    Raises:
        CheckpointError: the record is damaged.
    """
    return _recorded().get(entry.url)


def record_checksum(entry: ZooEntry, checksum: str) -> None:
    """Record the checksum of a download, which later ones must have."""
    checksums = {**_recorded(), entry.url: checksum}
    write_text(checksums_file(), json.dumps(checksums, indent=2, sort_keys=True) + "\n")
