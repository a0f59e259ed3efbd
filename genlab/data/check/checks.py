"""Check a whole data set and report what prevents training on it."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from genlab.data.check.rules import judge
from genlab.data.check.tally import take
from genlab.data.conform import Conform
from genlab.data.sources.base import Finding, ImageSource
from genlab.data.sources.layout import Layout, layout_of
from genlab.data.sources.members import MemberSource
from genlab.data.sources.opening import has_files, open_container, open_source
from genlab.errors import DataError

ORDER = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a look at a data set brought up.

    Attributes:
        path: what was looked at.
        kind: what it is, in words.
        num_images: how many there are, broken ones included.
        classes: class name -> number of images; None without labels.
        sizes: ``32x32`` (width x height) -> number of images.
        modes: ``L``, ``RGB``, ... -> number of images.
        formats: ``PNG``, ... -> number of files; empty where the images lie in one array.
        findings: errors first, then warnings, then notes.
    """

    path: str
    kind: str
    num_images: int = 0
    classes: dict[str, int] | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def trainable(self) -> bool:
        """Whether nothing stands in the way of training."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "trainable": self.trainable}


def check(
    path: str | Path,
    *,
    conform: Conform | None = None,
    split: str = "train",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read every image of a data set and judge it.

    Args:
        path: anything that `open_source` takes.
        conform: how training is to make the images alike; what it settles is no error.
        split: which part, where there are several.
        threads: how many images are decoded at once; None means one for each core, 8 at most.
        progress: called with the number of images read since the last call, and of all.

    Returns:
        The report. What is wrong with the data stands in it and is not raised.
    """
    path = Path(path).expanduser()
    findings: list[Finding] = []
    try:
        source = _open(path, split, findings)
    except DataError as error:
        findings.append(Finding.error("unreadable", str(error)))
        return Report(path=str(path), kind="unknown", findings=_sorted(findings))
    if len(source) == 0:
        return Report(path=str(path), kind=source.kind, findings=_sorted(findings))
    count = len(source)
    tally = take(
        source,
        threads or min(8, os.cpu_count() or 1),
        None if progress is None else lambda amount: progress(amount, count),
    )
    sound = all(finding.level != "error" for finding in findings)
    judged = judge(source, tally, conform or Conform())
    # Where the layout is wrong, the reason why there are no labels is among the findings already.
    findings += [finding for finding in judged if sound or finding.code != "no-labels"]
    return Report(
        path=str(path),
        kind=source.kind,
        num_images=count,
        classes=_count_classes(source),
        sizes={f"{w}x{h}": n for (w, h), n in tally.sizes.most_common()},
        modes=dict(tally.modes.most_common()),
        formats=dict(tally.formats.most_common()),
        findings=_sorted(findings),
    )


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: ORDER.index(finding.level)))


def _open(path: Path, split: str, findings: list[Finding]) -> ImageSource:
    """Open what is there; images in a wrong layout are looked at all the same."""
    if not has_files(path):
        source = open_source(path, split)
        source.read_all()  # damage concerns the whole array, not each of its images
        findings += source.findings
        return source
    container = open_container(path)
    layout = layout_of(container, split)
    findings += layout.findings
    if not layout.sound:  # the labels would be wrong, the pixels are worth a look
        layout = Layout(layout.images, split=layout.split)
    return MemberSource(container, layout=replace(layout, findings=()))


def _count_classes(source: ImageSource) -> dict[str, int] | None:
    if source.labels is None:
        return None
    counts = np.bincount(source.labels, minlength=source.num_classes).tolist()
    names = list(source.class_names or map(str, range(len(counts))))
    twice = {name for name, times in Counter(names).items() if times > 1}  # ImageNet has two cranes
    names = [f"{name} ({i})" if name in twice else name for i, name in enumerate(names)]
    return dict(zip(names, counts, strict=True))
