"""``dataset.json``: the labels of an EDM-style set, ``{"labels": [["a/b.png", 0], ...]}``.

``labels`` may be null (no labels) or an object ``{"a/b.png": 0}``; an extra key ``class_names``
names the classes. Source: NVlabs/edm, the data sets that its tool writes.
"""

import json
from typing import Any

import numpy as np
from jaxtyping import Int64

from genlab.data.sources.base import Finding, some
from genlab.data.sources.containers import plain_path
from genlab.data.sources.limits import check_class_names, check_range
from genlab.errors import DataError, printable

MANIFEST = "dataset.json"

Labelled = tuple[Int64[np.ndarray, " N"] | None, tuple[str, ...] | None]
"""Labels and class names, each None where there are none."""


def labels_from_manifest(images: list[str], data: bytes, findings: list[Finding]) -> Labelled:
    """Label images by their manifest.

    Args:
        images: their names, as the manifest writes them.
        data: the manifest's bytes.
        findings: gets what is odd and can be lived with.

    Raises:
        DataError: the manifest is malformed, contradicts itself, or leaves images out.
    """
    content = _parse(data)
    labels = _parse_labels(content["labels"], set(images))
    class_names = _parse_names(content.get("class_names"))
    if labels is None:
        return None, None
    absent = [n for n in images if n not in labels]
    extra = sorted(set(labels) - set(images))
    if absent:
        others = f" (it lists {some(extra)}, which are not there)" if extra else ""
        raise DataError(
            f"{MANIFEST} has no label for {len(absent):,} of {len(images):,} images: "
            f"{some(absent)}{others}; add them or remove the images"
        )
    if extra:
        message = f"{MANIFEST} lists {len(extra):,} files that are not there: {some(extra)}"
        findings.append(Finding.warning("manifest", f"{message}; is the set complete?"))
    column = np.array([labels[n] for n in images], np.int64)
    if class_names is not None and column.max() >= len(class_names):
        raise DataError(
            f"{MANIFEST} has the label {column.max()} but names only {len(class_names)} classes; "
            "complete class_names"
        )
    return column, class_names or _names_from_folders(images, column)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{MANIFEST} is not JSON ({error}); write it again") from error
    if not isinstance(content, dict) or "labels" not in content:
        raise DataError(f'{MANIFEST} has no "labels"; it reads {{"labels": [["a.png", 0], ...]}}')
    return content


def _parse_labels(value: Any, images: set[str]) -> dict[str, int] | None:
    """Label by image; a name that is no image's as it stands is read with forward slashes."""
    if value is None:
        return None
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(
        isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs
    ):
        raise DataError(f'"labels" in {MANIFEST} must be a list of pairs like ["a.png", 0]')
    labels: dict[str, int] = {}
    for name, label in pairs:
        shown = printable(name)
        if isinstance(label, bool) or not isinstance(label, int):
            raise DataError(
                f"{MANIFEST} gives {shown} the label {printable(repr(label))}; labels are whole "
                "numbers from 0"
            )
        check_range(label, label, f"{MANIFEST} gives {shown}")
        image = name if name in images else plain_path(name)
        if labels.setdefault(image, label) != label:
            raise DataError(
                f"{MANIFEST} gives {shown} two labels, {labels[image]} and {label}; keep one"
            )
    return labels


def _parse_names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f'"class_names" in {MANIFEST} must be a list of texts, one for each class')
    check_class_names(value, f"{MANIFEST} has", "write another name in class_names")
    return tuple(value)


def _names_from_folders(
    images: list[str], labels: Int64[np.ndarray, " N"]
) -> tuple[str, ...] | None:
    """The folders as class names, where folders and classes match one to one."""
    folders: dict[int, set[str]] = {}
    for name, label in zip(images, labels.tolist(), strict=True):
        if "/" not in name:
            return None
        folders.setdefault(label, set()).add(name.partition("/")[0])
    names = [next(iter(folders[k])) for k in sorted(folders) if len(folders[k]) == 1]
    if len(set(names)) != len(folders) or sorted(folders) != list(range(len(folders))):
        return None
    try:
        check_class_names(names, "folders have", "rename the folder")
    except DataError:  # the labels stand without names
        return None
    return tuple(names)
