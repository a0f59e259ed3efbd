"""The metadata of an adapter, validated, since anybody may have written the file."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any

from genlab.errors import MOST_TEXT, CheckpointError, ConfigError, GenLabError, nearest, printable
from genlab.files import read_json_object, write_text
from genlab.finetuning.adapters.folders import CONFIG, METADATA
from genlab.finetuning.class_tables.origins import ClassOrigin

MAX_CLASSES = 1_000_000
CURE = "fetch it again"

_KINDS: Mapping[str, tuple[type | UnionType, str]] = {
    "base": (str | None, "text"),
    "base_sha256": (str | None, "64 hexadecimal digits, or null"),
    "method": (dict, "an object with a name"),
    "num_classes": (int | None, "a whole number"),
    "class_names": (list | None, "a list of names, or null"),
    "classes": (list, "a list of objects"),
    "resolution": (int | None, "a whole number, or null"),
    "has_null_class": (bool | None, "true, false or null"),
    "forget": (dict | None, "an object, or null"),
    "sampler": (dict, "an object"),
    "images": (dict, "an object"),
    "trained_on_images": (int | None, "a whole number"),
}
"""Key of the file -> what it must be, in types and in words."""


@dataclass(frozen=True, kw_only=True)
class AdapterMetadata:
    """The metadata that applying an adapter to its base needs.

    Attributes:
        base: name or path of the base, as the run was given it.
        base_sha256: of its weights; None where peft wrote the adapter.
        method: ``name`` and options of the method.
        num_classes: of the adapted model; None is the base's.
        class_names: of the adapted model, or None where there are no names.
        classes: where its classes begin in the base's table; empty where they are the base's.
        resolution: that the base is brought to, in pixels; None keeps its own.
        has_null_class: whether guidance by the null class is possible; None is as of the base.
        forget: classes that the model draws no more, see `genlab.finetuning.forgetting`.
        sampler: what is laid over the base's own.
        images: how the training images were converted.
        trained_on_images: images seen.
    """

    base: str | None = None
    base_sha256: str | None = None
    method: Mapping[str, Any]
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    classes: tuple[ClassOrigin, ...] = ()
    resolution: int | None = None
    has_null_class: bool | None = None
    forget: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    trained_on_images: int | None = None

    def to_json(self) -> dict[str, Any]:
        """In plain values, as the file holds them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["classes"] = [
            {**asdict(origin), "old": list(origin.old), "old_names": list(origin.old_names)}
            for origin in self.classes
        ]
        values["class_names"] = None if self.class_names is None else list(self.class_names)
        optional = ("has_null_class", "forget")
        return {k: v for k, v in values.items() if k not in optional or v is not None}

    def identity(self) -> dict[str, Any]:
        """What the adapter's effect depends on beside its tensors."""
        beside = ("base", "images", "trained_on_images", "sampler", "class_names")
        return {key: value for key, value in self.to_json().items() if key not in beside}

    def changes_classes(self, base_classes: int) -> bool:
        """Whether a base of so many classes gets other ones."""
        return bool(self.classes) or self.num_classes not in (None, base_classes)


def write_metadata(
    folder: Path, metadata: AdapterMetadata, theirs: Mapping[str, Any] | None
) -> None:
    """Write the metadata beside the tensors, each file whole or not at all.

    Args:
        folder: of the adapter.
        metadata: of it.
        theirs: what another library has in ``adapter_config.json``; None gives that file to GenLab.
    """
    if theirs is not None:
        _write_json(folder / METADATA, metadata.to_json())
    _write_json(folder / CONFIG, metadata.to_json() if theirs is None else theirs)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(dict(values), indent=2) + "\n")


def read_files(folder: Path) -> tuple[AdapterMetadata | None, dict[str, Any] | None]:
    """Read the files of an adapter.

    Returns:
        The metadata, or None where GenLab wrote none; and peft's configuration, or None where the
        adapter is none of peft's.

    Raises:
        CheckpointError: a file is missing, too large, no JSON, or says something impossible.
    """
    config = read_json_object(folder / CONFIG, CURE)
    if "peft_type" not in config:
        return metadata_of(config, folder / CONFIG), None
    path = folder / METADATA
    return (metadata_of(read_json_object(path, CURE), path) if path.is_file() else None), config


def metadata_of(values: Mapping[str, Any], path: Path) -> AdapterMetadata:
    """Validate the metadata in a file.

    A key that this version does not know is refused, since it may change what the adapter does.

    Args:
        values: of the file.
        path: of the file, for messages.

    Raises:
        CheckpointError: names file and key.
    """
    for key in values:
        if key not in _KINDS:
            raise CheckpointError(
                f"{path} holds '{printable(key)}', which this version of GenLab does not know "
                f"({nearest(printable(key, 50), _KINDS)}); update GenLab, or check that this is an "
                "adapter of GenLab or peft"
            )
    for key, (kind, phrase) in _KINDS.items():
        if key not in values and key in ("base", "method", "num_classes"):
            raise CheckpointError(f"{path} lacks {key}; {CURE}")
        value = values.get(key)
        number = isinstance(value, bool) and key != "has_null_class"  # True is an int, too
        if key in values and (not isinstance(value, kind) or number):
            raise CheckpointError(f"{key} in {path} must be {phrase}, got {_shown(value)}; {CURE}")
    _check_numbers(values, path)
    names = values.get("class_names")
    try:
        return AdapterMetadata(
            base=None if values["base"] is None else printable(values["base"], 4096),
            base_sha256=values.get("base_sha256"),
            method=dict(values["method"]),
            num_classes=values["num_classes"],
            class_names=None if names is None else tuple(_names(names, values, path)),
            classes=tuple(_origins(values.get("classes", []), values, path)),
            resolution=values.get("resolution"),
            has_null_class=values.get("has_null_class"),
            forget=values.get("forget"),
            sampler=values.get("sampler", {}),
            images=values.get("images", {}),
            trained_on_images=values.get("trained_on_images"),
        )
    except CheckpointError:
        raise
    except GenLabError as error:
        raise CheckpointError(f"{path} does not fit together: {printable(str(error))}") from error


def _check_numbers(values: Mapping[str, Any], path: Path) -> None:
    sha256 = values.get("base_sha256")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        expected = _KINDS["base_sha256"][1]
        raise CheckpointError(
            f"base_sha256 in {path} must be {expected}, got {_shown(sha256)}; {CURE}"
        )
    bounds = {"num_classes": (0, MAX_CLASSES), "resolution": (1, 1 << 16)}
    for key, (low, high) in bounds.items():
        number = values.get(key)
        if number is not None and not low <= number <= high:
            raise CheckpointError(
                f"{key} in {path} must lie between {low} and {high:,}, got {_shown(number)}; {CURE}"
            )


def _names(names: list[Any], values: Mapping[str, Any], path: Path) -> list[str]:
    if not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"class_names in {path} must be names; {CURE}")
    if len(names) != values["num_classes"]:
        raise CheckpointError(
            f"{path} has {len(names)} class_names and num_classes {values['num_classes']}; {CURE}"
        )
    return [printable(name) for name in names]


def _origins(classes: list[Any], values: Mapping[str, Any], path: Path) -> list[ClassOrigin]:
    if classes and len(classes) != values["num_classes"]:
        raise CheckpointError(
            f"{path} says where {len(classes)} classes begin and has num_classes "
            f"{values['num_classes']}; {CURE}"
        )
    return [_origin(each, number, path) for number, each in enumerate(classes)]


def _origin(values: Any, number: int, path: Path) -> ClassOrigin:
    kinds: Mapping[str, type | UnionType] = {
        "name": str, "rule": str, "old": list, "old_names": list, "seed": int | None
    }  # fmt: skip
    fits = (
        isinstance(values, dict)
        and {"name", "rule"} <= values.keys() <= kinds.keys()
        and all(isinstance(value, kinds[key]) for key, value in values.items())
        and all(type(old) is int for old in values.get("old", []))
        and all(isinstance(name, str) for name in values.get("old_names", []))
    )
    if not fits:
        raise CheckpointError(
            f"classes[{number}] in {path} must be an object with {', '.join(kinds)}, got "
            f"{_shown(values)}; {CURE}"
        )
    seed = values.get("seed")
    if seed is not None and not 0 <= seed < 1 << 63:
        raise ConfigError(f"classes[{number}] has the seed {_shown(seed)}")
    return ClassOrigin(
        name=printable(values["name"]),
        rule=values["rule"] if len(values["rule"]) < MOST_TEXT else "too long",
        old=values.get("old", ()),
        old_names=[printable(name) for name in values.get("old_names", [])],
        seed=seed,
    )


def _shown(value: Any) -> str:
    try:
        return printable(repr(value), 60)
    except ValueError:  # a whole number of thousands of digits
        return "a number that is too long"
