"""Golden cases: numbers of the official implementations, found on disk and compared one by one.

A case is a folder with ``meta.json`` (what was called, with which arguments), ``io.safetensors``
(inputs, random draws, outputs) and the official weights. Everything below goes by what meta.json
says; no name, shape or count of a case is known here, so another set of cases in the same format
runs through unchanged.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
SETS = ("golden", "golden-samplers", "golden-edm2")
"""Folders of shared data with cases."""

# "max|a-b| <= max(2e-5 max_abs_ref, 20 kernel_noise_max_abs)": the criterion that came with the
# data. Kernel noise is how far the official code moves from itself on other CPU kernels.
MAX_ABS = 2e-5
KERNEL_NOISE = 20.0
# Beside it, on the norm of the whole tensor, unless the case's own kernel noise is larger.
NORM = 1e-5
# How the data spell an infinite sigma_max.
INFINITY = 1e300


class MismatchError(AssertionError):
    """Numbers, or what a run consists of, are not those of the official implementation."""


class NotBuiltError(Exception):
    """A kind of run that a later issue builds."""


@dataclass(frozen=True, eq=False)
class Case:
    """One folder."""

    folder: Path
    meta: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def set_name(self) -> str:
        return self.folder.parent.name

    def runs(self) -> list["Run"]:
        """The runs of the case; a case that lists none is one run whose kind is its source."""
        if "runs" in self.meta:
            return [Run(self, spec) for spec in self.meta["runs"]]
        return [Run(self, {"name": "whole", "kind": _source_kind(self.meta)})]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self.folder)


@dataclass(eq=False)
class Run:
    """One entry of ``runs``; it notes what a check has read, because all of it must be."""

    case: Case
    spec: dict[str, Any]
    read: set[str] = field(default_factory=set)

    @property
    def kind(self) -> str:
        return str(self.spec.get("kind"))

    @property
    def id(self) -> str:
        return f"{self.case.name}-{self.spec.get('name')}"

    def has(self, name: str) -> bool:
        return name in self.spec["inputs"]

    def input(self, name: str) -> Tensor:
        """An input tensor; a missing one fails the run."""
        self.read.add(f"input {name}")
        return self.case.tensors[self.spec["inputs"][name]]

    def optional(self, name: str) -> Tensor | None:
        return self.input(name) if self.has(name) else None

    def params(self, *names: str) -> dict[str, Any]:
        """Those of the parameters that the run has."""
        present = {name: self.spec["params"][name] for name in names if name in self.spec["params"]}
        self.read |= {f"param {name}" for name in present}
        return present

    def draws(self) -> list[Tensor]:
        """The recorded random numbers in the order of the official draws."""
        return [numbers for _, numbers in self.draws_by_kind()]

    def draws_by_kind(self) -> Iterator[tuple[str, Tensor]]:
        """The same, each with its kind: "" where none is told."""
        for draw in self.spec["draws"]:
            numbers = self.case.tensors[draw["key"]]
            for row in numbers if draw["stacked"] else [numbers]:
                yield draw.get("kind") or "", row

    def reference(self, output: str) -> Tensor:
        return self.case.tensors[self.spec["outputs"][output]]

    def expect_all(self, results: dict[str, Tensor], by_row: Iterable[str] = ()) -> None:
        """Compare every output that the run lists, and see that nothing in it went unread.

        Args:
            results: our numbers under the names of the outputs.
            by_row: outputs of which each row is judged on its own scale.
        """
        unknown = set(self.spec["outputs"]) - set(results)
        unknown |= {f"input {name}" for name in self.spec["inputs"]} - self.read
        unknown |= {f"param {name}" for name in self.spec["params"]} - self.read
        if unknown:
            raise MismatchError(f"{self.id}: this check does not know {', '.join(sorted(unknown))}")
        for output in self.spec["outputs"]:
            noise = self.spec.get("magnitude", {}).get(output, {})
            compare(
                f"{self.id}: {output}",
                results[output],
                self.reference(output),
                kernel_noise=relative_noise(noise),
                by_row=output in by_row,
            )


def relative_noise(magnitude: dict[str, float]) -> float:
    """Kernel noise as a share of the largest value."""
    largest = magnitude.get("max_abs_ref", 0.0)
    return magnitude.get("kernel_noise_max_abs", 0.0) / largest if largest > 0 else 0.0


def compare(
    what: str, ours: Tensor, reference: Tensor, *, kernel_noise: float = 0.0, by_row: bool = False
) -> None:
    """Fail unless ours is the reference: integers exactly, others by largest error and by norm."""
    if ours.shape != reference.shape:
        raise MismatchError(f"{what} has shape {tuple(ours.shape)}, not {tuple(reference.shape)}")
    if not reference.is_floating_point():
        if not torch.equal(ours.to(reference.dtype), reference):
            raise MismatchError(f"{what} differs")
        return
    if by_row:
        for i, (row, expected) in enumerate(zip(ours, reference, strict=True)):
            compare(f"{what}[{i}]", row, expected, kernel_noise=kernel_noise)
        return
    a = ours.detach().double().clamp(-INFINITY, INFINITY)
    b = reference.double()
    if b.numel() == 0:
        return
    bounds = {
        "largest error": max(MAX_ABS, KERNEL_NOISE * kernel_noise) * float(b.abs().max()),
        "norm of the error": max(NORM, KERNEL_NOISE * kernel_noise) * _norm(b),
    }
    errors = {"largest error": float((a - b).abs().max()), "norm of the error": _norm(a - b)}
    for name, error in errors.items():
        if not error <= bounds[name]:  # a NaN fails, too
            raise MismatchError(f"{what}: {name} is {error:.3g}, allowed are {bounds[name]:.3g}")


def _norm(values: Tensor) -> float:
    scale = float(values.abs().max())
    return 0.0 if scale == 0 else scale * float((values / scale).norm())  # 1e300 squared is inf


def golden_folders() -> list[Path]:
    """Where the cases are: ``GENLAB_GOLDEN``, the shared folders, or the subset shipped here.

    Raises:
        NotADirectoryError: the variable names a folder that is not there.
    """
    named = [Path(name) for name in os.environ.get("GENLAB_GOLDEN", "").split(os.pathsep) if name]
    for folder in named:
        if not folder.is_dir():
            raise NotADirectoryError(f"GENLAB_GOLDEN names {folder}, which is not a folder")
    if named:
        return named
    shared = Path(os.environ.get("GENLAB_SHARED", CHECKOUT.parent / "shared"))
    return [shared / name for name in SETS if (shared / name).is_dir()] or [HERE / "data"]


def find_cases(*folders: Path) -> list[Case]:
    """Every folder below those given with a meta.json, in their order and by name."""
    found = [path for folder in folders for path in sorted(folder.rglob("meta.json"))]
    return [read_case(path.parent) for path in found]


def unique_ids(runs: Sequence[Run]) -> list[str]:
    """A name for each run; those of the same name are told apart by the folder of their cases."""
    common = Counter(run.id for run in runs)
    ids = [run.id if common[run.id] == 1 else f"{run.case.set_name}:{run.id}" for run in runs]
    seen, times = Counter[str](), Counter(ids)
    for index, name in enumerate(ids):
        seen[name] += 1
        if times[name] > 1:
            ids[index] = f"{name} ({seen[name]})"
    return ids


def read_case(folder: Path) -> Case:
    """Read one case; damage shows when its run is checked, as that of this case alone."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        assert isinstance(meta, dict)
    except (OSError, ValueError, AssertionError) as error:
        meta = {"source": f"unreadable meta.json ({error})"}
    return Case(folder, meta)


def _source_kind(meta: dict[str, Any]) -> str:
    """The repository that a case without runs was made with, and the class if it is of only one."""
    sources = meta.get("source", meta.get("sources"))
    first = sources[0] if isinstance(sources, list) and sources else sources
    if isinstance(first, dict) and "repository" in first:
        repository = str(first["repository"]).rstrip("/").rpartition("/")[2]
        return " ".join(["source", repository, *([first["class"]] if "class" in first else [])])
    return f"source {first}"


@lru_cache(maxsize=4)
def _tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")
