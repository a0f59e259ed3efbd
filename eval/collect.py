"""Collect what the metrics need from images: one pass, bounded memory, resumable.

Batches are dealt out to the processes. Each process writes what it has so far (moments, features,
batch numbers) to a part file of its own every now and then; a part is written whole or not at all,
so a run that is killed loses the batches since its last part and nothing else. At the end the parts
of all processes and sittings are merged.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genlab.errors import EvaluationError, GenLabError, SamplingError
from genlab.eval.extractors.base import FeatureExtractor, check_features
from genlab.eval.metrics.base import FeatureSet, Need
from genlab.eval.moments import Moments
from genlab.eval.samples import Drawn, Samples
from genlab.files import atomic_path, write_text
from genlab.generators.costs import Cost, Costs, together
from genlab.runs.lock import lock_folder
from genlab.runs.processes import Processes
from genlab.samplers.tallies import Tallies, add_up

PART_SECONDS = 20.0
"""How much work a killed run may lose."""

PART_BYTES = 256 << 20
"""A part with so many bytes of features is closed: writing it again and again would cost time."""

FIRST_IMAGES = 40
"""Images kept for the picture of the record."""


class SharedError(SamplingError):
    """What went wrong in one of many processes; all of them raise it, and none waits for others."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What `collect` has gathered of one set of images.

    Attributes:
        features: what metrics read.
        first: the first images, (min(N, `FIRST_IMAGES`), 3, H, W).
        nfe: network evaluations for each image.
        seconds: that drawing took in this run, over all processes; not in earlier sittings, whose
            machine may have been busy with other things.
        timed: images that were drawn in this run.
        costs: of a stitched run, what each of its models cost, likewise.
        tallies: what the sampler counted beside evaluations, likewise.
    """

    features: FeatureSet
    first: Tensor
    nfe: int
    seconds: float
    timed: int = 0
    costs: Costs = field(default_factory=dict)
    tallies: Tallies = field(default_factory=dict)


def collect(
    samples: Samples,
    extractor: FeatureExtractor,
    needs: Iterable[Need],
    *,
    batch_size: int = 50,
    folder: Path | None = None,
    processes: Processes | None = None,
    on_progress: Callable[[int], None] = lambda images: None,
    part_seconds: float | None = None,
    keep: bool = False,
) -> Collected | None:
    """Read every image once and keep what the metrics need.

    Args:
        samples: the images.
        extractor: on its device.
        needs: of all metrics together.
        batch_size: images at a time; it is part of the identity of an unfinished run.
        folder: of unfinished work, which a later run resumes; None keeps it in memory.
        processes: this one and its peers; they need a folder.
        on_progress: called with the number of images just done.
        part_seconds: how often work is saved; None is `PART_SECONDS`.
        keep: leave the finished work in the folder, until `discard` removes it: for callers who
            have more to do that may be interrupted.

    Returns:
        Everything, in the process of rank 0; None in the others.

    Raises:
        EvaluationError: features are not finite, or fewer than two images.
        SamplingError: images are not finite.
        SharedError: any of these, in all of several processes.
        OutputError: the folder cannot be written, or another run is writing to it.
    """
    processes = processes or Processes()
    every = PART_SECONDS if part_seconds is None else part_seconds
    required = tuple(sorted(set(needs)))
    if samples.count < 2:
        raise EvaluationError(f"a score needs at least two images, got {samples.count}")
    if folder is None:
        assert processes.count == 1, "processes meet in a folder"
        part = _Part(None)
        for number in range(_num_batches(samples, batch_size)):
            _take(part, number, samples, extractor, required, batch_size)
            on_progress(_size(samples, batch_size, number))
        tensors = part.tensors()
        return _merge([tensors], [tensors], samples, extractor, required, samples.count)
    key = _key(samples, extractor, required, batch_size)
    with _Work(folder, processes, key, keep) as work:
        earlier = dict(work.parts())
        done = {n for tensors in earlier.values() for n in tensors["batches"].tolist()}
        timed = samples.count - sum(_size(samples, batch_size, n) for n in done)
        todo = [n for n in range(_num_batches(samples, batch_size)) if n not in done]
        on_progress(sum(_size(samples, batch_size, n) for n in done))
        processes.wait()  # no process writes before all have looked
        with work.failing_together():
            _run(work, todo[processes.rank :: processes.count], samples, extractor, required,
                 batch_size, every, on_progress)  # fmt: skip
        merged = None
        if processes.rank == 0:
            parts = dict(work.parts())
            own = [tensors for name, tensors in parts.items() if name not in earlier]
            merged = _merge(list(parts.values()), own, samples, extractor, required, timed)
        processes.wait()
        return merged


def discard(folder: Path) -> None:
    """Remove the finished work that `collect` kept in a folder; one process does it."""
    for path in folder.glob("part-*.safetensors"):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        for name in ("key.json", "lock"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _run(
    work: "_Work",
    todo: Sequence[int],
    samples: Samples,
    extractor: FeatureExtractor,
    needs: Sequence[Need],
    batch_size: int,
    part_seconds: float,
    on_progress: Callable[[int], None],
) -> None:
    part, written = _Part(work.folder), time.monotonic()
    for number in todo:
        _take(part, number, samples, extractor, needs, batch_size)
        if time.monotonic() - written > part_seconds:
            part.write()
            written = time.monotonic()
            if part.bytes > PART_BYTES:
                part = _Part(work.folder)
        on_progress(_size(samples, batch_size, number))
    part.write()


def _num_batches(samples: Samples, batch_size: int) -> int:
    return -(-samples.count // batch_size)


def _size(samples: Samples, batch_size: int, number: int) -> int:
    return min(samples.count, (number + 1) * batch_size) - number * batch_size


def _key(
    samples: Samples, extractor: FeatureExtractor, needs: Sequence[Need], batch_size: int
) -> dict[str, Any]:
    """A key that is equal for parts of the same collection."""
    return {
        "samples": samples.identity(),
        "extractor": extractor.identity(),
        "needs": [list(need) for need in needs],
        "batch_size": batch_size,
    }


def _take(
    part: "_Part",
    number: int,
    samples: Samples,
    extractor: FeatureExtractor,
    needs: Sequence[Need],
    batch_size: int,
) -> None:
    """Add one batch to a part."""
    start = number * batch_size
    drawn = samples.read(start, min(samples.count, start + batch_size))
    outputs = sorted({need.output for need in needs if need.output})
    features = extractor(drawn.images.to(extractor.device), outputs) if outputs else {}
    check_features(extractor, features, outputs, len(drawn.images))
    for output, rows in features.items():
        if not rows.isfinite().all():
            raise EvaluationError(
                f"features of images {start} ... {start + len(rows) - 1} are not finite "
                f"({extractor.name}, {output}); check the extractor's weights"
            )
    part.add(number, start, drawn, features, needs)


@dataclass
class _Part:
    """What one process has gathered since its last part was closed."""

    folder: Path | None
    name: str = field(default_factory=lambda: f"part-{uuid.uuid4().hex[:12]}.safetensors")
    batches: list[int] = field(default_factory=list)
    moments: dict[str, Moments] = field(default_factory=dict)
    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    first: dict[int, Tensor] = field(default_factory=dict)
    nfe: int = 0
    seconds: float = 0.0
    costs: Costs = field(default_factory=dict)
    tallies: Tallies = field(default_factory=dict)
    bytes: int = 0

    def add(
        self,
        number: int,
        start: int,
        drawn: Drawn,
        features: Mapping[str, Tensor],
        needs: Sequence[Need],
    ) -> None:
        """Take in a batch."""
        self.batches.append(number)
        self.nfe, self.seconds = drawn.nfe, self.seconds + drawn.seconds
        self.costs = together([self.costs, drawn.costs])
        self.tallies = add_up([self.tallies, drawn.tallies])
        for need in needs:
            if need.what == "moments":
                rows = features[need.output]
                fresh = Moments(rows.shape[1], _accumulator(rows.device))
                self.moments.setdefault(need.output, fresh).update(rows)
            elif need.what in ("rows", "images"):
                kept = drawn.images if need.what == "images" else features[need.output]
                self._keep(need.output or "images", kept)
        if start < FIRST_IMAGES:
            self.first[number] = drawn.images[: FIRST_IMAGES - start].cpu()

    def _keep(self, name: str, rows: Tensor) -> None:
        self.rows.setdefault(name, []).append(rows.cpu())
        self.bytes += rows.numel() * rows.element_size()

    def tensors(self) -> dict[str, Tensor]:
        """Everything, under flat names."""
        tensors = {
            "batches": torch.tensor(self.batches, dtype=torch.int64),
            "nfe": torch.tensor(self.nfe),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }
        tensors |= {
            f"costs.{model}": torch.tensor([cost.evaluations, cost.seconds], dtype=torch.float64)
            for model, cost in self.costs.items()
        }
        tensors |= {  # counts stay whole numbers, which the reader tells them by
            f"tallies.{topic}.{name}": torch.tensor(
                number, dtype=torch.int64 if isinstance(number, int) else torch.float64
            )
            for topic, numbers in self.tallies.items()
            for name, number in numbers.items()
        }
        for output, moments in self.moments.items():
            state = moments.state_dict().items()
            tensors |= {f"moments.{output}.{key}": value.cpu() for key, value in state}
        for name, batches in self.rows.items():
            # One tensor for each batch: parts are merged in the order of the images.
            tensors |= {
                f"rows.{name}.{number}": rows.contiguous()
                for number, rows in zip(self.batches, batches, strict=True)
            }
        tensors |= {f"first.{number}": value.contiguous() for number, value in self.first.items()}
        return tensors

    def write(self) -> None:
        """Put the part on the disk, in place of its earlier state."""
        if self.folder is None or not self.batches:
            return
        with atomic_path(self.folder / self.name) as temporary:
            save_file(self.tensors(), temporary)


def _accumulator(device: torch.device) -> torch.device:
    """Where float64 moments are kept: on the device, or beside one that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class _Work:
    """The folder of an unfinished collection; it goes when the collection is done."""

    def __init__(
        self, folder: Path, processes: Processes, key: Mapping[str, Any], keep: bool
    ) -> None:
        self.folder, self.processes, self._keep = folder, processes, keep
        self.key = json.dumps(key, indent=1, sort_keys=True)

    def __enter__(self) -> "_Work":
        self._lock = None
        if self.processes.rank == 0:
            self._lock = lock_folder(self.folder / "lock", str(self.folder))
            path = self.folder / "key.json"
            if not path.is_file() or path.read_text(encoding="utf-8") != self.key:
                self._remove_parts()
                write_text(path, self.key)
            for failure in self.folder.glob("failure-*.txt"):
                failure.unlink()
        self.processes.wait()
        return self

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Wait for all processes; where one of them failed, all of them raise.

        A process that left alone would let the others wait for it forever.
        """
        try:
            yield
        except GenLabError as error:
            if self.processes.count == 1:
                raise
            write_text(self.folder / f"failure-{self.processes.rank}.txt", str(error))
        self.processes.wait()
        reasons = [path.read_text("utf-8") for path in sorted(self.folder.glob("failure-*.txt"))]
        self.processes.wait()  # no process starts again, and removes them, before all have read
        if reasons:
            raise SharedError(reasons[0])

    def parts(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """All parts on the disk, by name; what cannot be read is computed again."""
        for path in sorted(self.folder.glob("part-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    names = list(file.keys())
                    yield path.name, {name: file.get_tensor(name) for name in names}
            except (SafetensorError, OSError):
                path.unlink(missing_ok=True)

    def _remove_parts(self) -> None:
        for path in self.folder.glob("part-*.safetensors"):
            path.unlink()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lock is None:
            return
        self._lock.release()
        if kind is None and not self._keep:
            discard(self.folder)


def _merge(
    parts: Sequence[Mapping[str, Tensor]],
    own: Sequence[Mapping[str, Tensor]],
    samples: Samples,
    extractor: FeatureExtractor,
    needs: Sequence[Need],
    timed: int,
) -> Collected:
    """Put parts together, in the order of the images; ``own`` are those that this run has made."""
    parts = sorted(parts, key=lambda tensors: int(tensors["batches"].min()))
    moments: dict[str, Moments] = {}
    for output in sorted({need.output for need in needs if need.what == "moments"}):
        for tensors in parts:
            names = ("count", "mean", "scatter")
            state = {name: tensors[f"moments.{output}.{name}"] for name in names}
            part = Moments.from_state(state)
            if output in moments:
                moments[output].merge(part)
            else:
                moments[output] = part
    rows = {
        need.output: _in_order(parts, f"rows.{need.output}.")
        for need in needs
        if need.what == "rows"
    }
    wants_images = any(need.what == "images" for need in needs)
    return Collected(
        features=FeatureSet(
            count=samples.count,
            moments=moments,
            rows=rows,
            labels=samples.labels,
            class_names=_names(samples.class_names),
            logit_names=_names(extractor.class_names),
            images=_in_order(parts, "rows.images.") if wants_images else None,
        ),
        first=_in_order(parts, "first."),
        nfe=max(int(part["nfe"]) for part in parts),
        seconds=sum(float(part["seconds"]) for part in own),
        timed=timed,
        costs=together([_costs(part) for part in parts]),
        tallies=add_up(map(_tallies, parts)),
    )


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _costs(part: Mapping[str, Tensor]) -> Costs:
    return {
        name.removeprefix("costs."): Cost(int(value[0]), float(value[1]))
        for name, value in part.items()
        if name.startswith("costs.")
    }


def _tallies(part: Mapping[str, Tensor]) -> Tallies:
    tallies: dict[str, dict[str, float]] = {}
    for key, value in part.items():
        if key.startswith("tallies."):
            _, topic, name = key.split(".", 2)
            tallies.setdefault(topic, {})[name] = value.item()
    return tallies


def _in_order(parts: Sequence[Mapping[str, Tensor]], prefix: str) -> Tensor:
    """The tensors of all batches under ``prefix``, in order, as one tensor."""
    batches = {
        int(name.removeprefix(prefix)): value
        for part in parts
        for name, value in part.items()
        if name.startswith(prefix)
    }
    return torch.cat([batches[number] for number in sorted(batches)])
