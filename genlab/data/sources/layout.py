"""Find out from a list of file names which are images, of which classes, and what is odd.

Labels come from ``dataset.json`` where there is one (NVlabs/edm: ``{"labels": [["a/b.png", 0],
...]}``), else from the first folder of each image, in the order of the sorted names.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Int64

from genlab.data.sources.base import Finding, some
from genlab.data.sources.containers import Container
from genlab.data.sources.decode import EXTENSIONS
from genlab.data.sources.limits import check_class_names
from genlab.data.sources.manifest import MANIFEST, Labelled, labels_from_manifest
from genlab.errors import DataError

SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
"""Our word for a split -> the names of folders that hold one; the first one found is taken."""

_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_SHARD = re.compile(r"(?P<folder>\d{5,})/(img)?(?P<number>\d{6,})\.\w+")
_PAPERS = {".txt", ".md", ".json", ".csv", ".html", ".pdf", ""}
"""Endings of files that are expected beside images and not worth a word."""


@dataclass(frozen=True)
class Layout:
    """The images of a data set.

    Attributes:
        images: their names, sorted.
        labels: (N,), or None.
        class_names: or None where the classes have none.
        findings: what is odd; a layout with an error among them cannot be trusted.
        split: the part that was read; None where there are no parts.
    """

    images: list[str] = field(default_factory=list)
    labels: Int64[np.ndarray, " N"] | None = None
    class_names: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()
    split: str | None = None

    @property
    def sound(self) -> bool:
        """Whether the labels can be trusted."""
        return all(finding.level != "error" for finding in self.findings)


def read_layout(names: Iterable[str], read: Callable[[str], bytes], split: str = "train") -> Layout:
    """Find the images among files and label them.

    Args:
        names: of all files (and folders, which end in a slash), with forward slashes.
        read: gives the bytes of a file, for the manifest.
        split: which part, where the top folders are parts (train, test, ...).

    Returns:
        The layout; errors stand among its findings and are not raised.
    """
    kept = sorted(name for name in set(names) if not _is_junk(name))
    prefix = _split_prefix(kept, split)
    if prefix is None:
        return Layout(findings=(_no_split(kept, split),))
    inside = [name.removeprefix(prefix) for name in kept if name.startswith(prefix)]
    images = [n for n in inside if PurePosixPath(n).suffix.lower() in EXTENSIONS]
    findings = list(_strangers(inside))
    if not images:
        findings.append(
            Finding.error("no-images", "there are no images; give the folder that holds them")
        )
        return Layout(findings=tuple(findings))
    if MANIFEST in inside:
        try:
            labels, class_names = labels_from_manifest(images, read(prefix + MANIFEST), findings)
        except DataError as error:
            findings.append(Finding.error("manifest", str(error)))
            labels, class_names = None, None
    else:
        labels, class_names = _from_folders(inside, images, findings)
    part = split if prefix else None
    return Layout([prefix + n for n in images], labels, class_names, tuple(findings), part)


def layout_of(container: Container, split: str = "train") -> Layout:
    """The images of a folder or zip; see `read_layout`.

    Args:
        container: where the files lie.
        split: which part, where there are several.
    """
    layout = read_layout(container.names(), container.read, split)
    if not container.special:
        return layout
    count = len(container.special)
    finding = Finding.warning(
        "special",
        f"{count:,} {'entry is a pipe or device' if count == 1 else 'entries are pipes or devices'}"
        f" and passed over: {some(container.special)}; remove what is no image",
    )
    return replace(layout, findings=(*layout.findings, finding))


def _is_junk(name: str) -> bool:
    return any(part.startswith(".") or part in _JUNK for part in name.split("/") if part)


def _first(name: str) -> str:
    return name.partition("/")[0]


def _split_prefix(names: list[str], split: str) -> str | None:
    """The split's folder with its slash; '' where there are no splits, None if it is missing."""
    folders = {_first(n) for n in names if "/" in n}
    split_names = [name for group in SPLITS.values() for name in group]
    if not folders or not all(folder.lower() in split_names for folder in folders):
        return "" if split == "train" else None
    for alias in SPLITS.get(split, (split,)):
        for folder in sorted(folders):
            if folder.lower() == alias:
                return f"{folder}/"
    return None


def _no_split(names: list[str], split: str) -> Finding:
    folders = sorted({_first(n) for n in names if "/" in n})
    return Finding.error(
        "no-split",
        f"there is no split {split!r}; top folders found: "
        f"{some(folders, 5) or 'none'}; give the path of the part you want",
    )


def _strangers(names: list[str]) -> Iterable[Finding]:
    """Files that are neither images nor usual companions such as a README."""
    suffixes = EXTENSIONS | _PAPERS
    strange = [
        n for n in names if not n.endswith("/") and PurePosixPath(n).suffix.lower() not in suffixes
    ]
    if strange:
        yield Finding.warning(
            "not-images",
            f"{len(strange):,} files are not images and are passed over: {some(strange)}; convert "
            "them if they should be used",
        )


def _from_folders(names: list[str], images: list[str], findings: list[Finding]) -> Labelled:
    top = [n for n in images if "/" not in n]
    classes = sorted({_first(n) for n in images if "/" in n})
    deep = [n for n in names if PurePosixPath(n).name == MANIFEST]
    if deep:
        findings.append(_lost_manifest(deep[0]))
        return None, None
    if not classes:
        return None, None
    if top:
        findings.append(
            Finding.error(
                "mixed-nesting",
                f"{len(top):,} images lie beside the folders {some(classes)} ({some(top, 2)}); "
                "move each into the folder of its class",
            )
        )
        return None, None
    if _is_sharded(images):
        findings.append(
            Finding.note(
                "shards",
                f"the folders {some(classes)} look like numbered shards, not classes, so the "
                f"images have no labels; write a {MANIFEST} to give them some",
            )
        )
        return None, None
    findings += _nesting(images, classes)
    findings += _odd_folders(names, classes)
    try:
        check_class_names(classes, "the folders of classes have", "rename the folder")
    except DataError as error:
        findings.append(Finding.error("class-name", str(error)))
        return None, None
    numbers = {name: label for label, name in enumerate(classes)}
    return np.array([numbers[_first(n)] for n in images], np.int64), tuple(classes)


def _lost_manifest(name: str) -> Finding:
    folder = str(PurePosixPath(name).parent)
    return Finding.error(
        "nesting",
        f"{MANIFEST} lies in {folder}/ and not at the top; give that folder, or zip what is in it",
    )


def _is_sharded(images: list[str]) -> bool:
    """Whether the folders only keep a long list short, as EDM's tools and our own do.

    ``00012/img00012345.png`` is a data set's image 12345, ``012000/012345.png`` that of a seed.
    """
    return all(
        (match := _SHARD.fullmatch(name)) is not None
        and int(match["folder"])
        in (int(match["number"]) // 1000, int(match["number"]) // 1000 * 1000)
        for name in images
    )


def _nesting(images: list[str], classes: list[str]) -> Iterable[Finding]:
    inner = {name: set[str]() for name in classes}
    for image in images:
        first, _, rest = image.partition("/")
        inner[first].add(_first(rest) if "/" in rest else "")
    nested = [name for name in classes if inner[name] != {""}]
    if not nested:
        return
    if len(classes) == 1 and "" not in inner[classes[0]]:
        yield Finding.error(
            "nesting",
            f"all images lie one folder too deep, in {classes[0]}/ (which holds "
            f"{some(sorted(inner[classes[0]]))}); give that folder instead",
        )
    elif len(nested) == len(classes) and all(len(inner[name]) == 1 for name in classes):
        example = f"{classes[0]}/{next(iter(inner[classes[0]]))}"
        yield Finding.warning(
            "nesting",
            f"every class folder holds one more folder ({example}/); the labels are those of the "
            "outer folders, check that this is meant",
        )
    else:
        example = next(f"{name}/{sub}" for name in nested for sub in sorted(inner[name]) if sub)
        yield Finding.warning(
            "nesting",
            f"{len(nested)} of {len(classes)} class folders hold folders themselves ({example}/); "
            "their images count to the outer folder, move them if they are classes of their own",
        )


def _odd_folders(names: list[str], classes: list[str]) -> Iterable[Finding]:
    empty = sorted({_first(n) for n in names if "/" in n} - set(classes))
    if empty:
        yield Finding.warning(
            "empty-class",
            f"{len(empty)} folders hold no images and get no label: {some(empty)}; remove or fill "
            "them, or the numbers of the classes change when they are filled later",
        )
    if all(name.isdigit() for name in classes):
        wrong = [f"{name} gets label {i}" for i, name in enumerate(classes) if int(name) != i]
        if wrong:
            yield Finding.warning(
                "numeric-classes",
                f"the class folders are numbers that are not their labels: {some(wrong)}; folders "
                "are sorted as text, so pad the numbers with zeros and start at 0",
            )
