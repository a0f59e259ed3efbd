"""Run the points of a sweep: all are built and checked first, then each is an ordinary evaluation.

Finished records are kept by the identity of what they measure, so that points which sweeps share
are computed once; an unfinished point goes on where it was, as any evaluation does.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError, GenLabError, OutputError
from genlab.eval.collect import SharedError
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import Evaluation, OnProgress
from genlab.eval.leaderboard.records import Record
from genlab.eval.metrics.base import Metric
from genlab.eval.prepare import load_model, merge_settings, model_name, model_subject
from genlab.eval.subject import holds_images
from genlab.eval.sweep import cache
from genlab.eval.sweep.points import Plan, Point
from genlab.generators.base import Generator
from genlab.runs.processes import Processes
from genlab.samplers.base import AnySampler


@dataclass(frozen=True, kw_only=True)
class Common:
    """What the points of a sweep have in common.

    Attributes:
        model: a bundled model, a zoo model, a folder or an official file; a point may name another.
        device: where models compute.
        protocol: see `merge_settings`, as for ``flags``.
        flags: fields of the configuration that win over every point's settings.
        name: how the leaderboard calls the model, before the point's label; None is its own name.
        autoencoder: of latent models, by its folder or name; None keeps each model's own.
    """

    model: str
    device: torch.device | str
    protocol: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    autoencoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A point that can be run.

    Attributes:
        point: which one.
        model: the model that it samples, as it was named.
        name: how the leaderboard calls it.
        config: with the whole sampler.
        key: hash of the identity of what it measures.
        images: to draw, over all repeats.
        nfe: network evaluations an image; None where it is not known before the run.
        record: the finished record, where an earlier run left one.
        directions: full score name -> whether lower is better, for what its metrics may give; None
            where neither is. Scores that only complete others are left out.
    """

    point: Point
    model: str
    name: str
    config: EvalConfig
    key: str
    images: int
    nfe: int | None
    record: Record | None
    directions: Mapping[str, bool | None]

    @property
    def work(self) -> int:
        """What is to be done, in network evaluations (in images where those are not known)."""
        return self.images * (self.nfe or 1)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a point.

    Attributes:
        checked: the point.
        record: its scores; None where it failed, and in processes other than that of rank 0.
        error: why it failed, else empty.
        fresh: whether it was computed in this run.
    """

    checked: Checked
    record: Record | None = None
    error: str = ""
    fresh: bool = False


def check(plan: Plan, common: Common, processes: Processes | None = None) -> list[Checked]:
    """Build every point, so that nothing is computed for a sweep that would be refused later.

    Args:
        plan: the points.
        common: what they share.
        processes: this one and its peers; all of them check.

    Returns:
        One for each point, in the order of the plan.

    Raises:
        GenLabError: a point is wrong; names it and says why.
    """
    processes = processes or Processes()
    for key in plan.axes:
        if key in common.flags:
            raise ConfigError(
                f"{key} is set for all points and is swept over; give it as an axis alone"
            )
    models = _Models(common)
    checked: dict[int, Checked] = {}
    order = _by_model(plan, common)
    for number in order:
        point = plan.points[number]
        try:
            checked[number] = _check(point, common, models, processes)
        except GenLabError as error:
            label = f"the point {point.label!r}: " if len(plan.points) > 1 else ""
            raise ConfigError(f"{label}{error}") from error
    processes.wait()  # no process adds to the cache before all have looked
    return [checked[number] for number in range(len(plan.points))]


def run(
    points: Sequence[Checked],
    common: Common,
    *,
    processes: Processes | None = None,
    on_start: Callable[[Checked], None] = lambda point: None,
    on_progress: OnProgress = lambda task, images, total: None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run what is not finished yet; a point that fails does not stop the others.

    Args:
        points: what `check` gave.
        common: what they share.
        processes: this one and its peers, which share the images of each point out.
        on_start: called with the point that is computed next.
        on_progress: see `genlab.eval.evaluate.evaluate`.
        on_result: called with the result of each point, as soon as it is known.

    Returns:
        One for each point, in their order.

    Raises:
        OutputError: a folder cannot be written: no other point would fare better.
        GenLabError: a point failed in one of several processes only.
    """
    processes = processes or Processes()
    models = _Models(common)
    results: dict[int, Result] = {}
    # Of a point that was finished in this run, only the process of rank 0 has the record.
    finished: dict[str, Record | None] = {p.key: p.record for p in points if p.record is not None}
    for number in sorted(range(len(points)), key=lambda n: _group(points[n])):
        checked = points[number]
        if checked.key in finished:
            earlier = finished[checked.key]
            record = None if earlier is None else replace(earlier, model=checked.name)
            result = Result(checked=checked, record=record, fresh=checked.record is None)
        else:
            on_start(checked)
            result = _run(checked, models, processes, on_progress)
            if result.record is not None:
                cache.keep(checked.key, result.record)
            if not result.error:
                finished[checked.key] = result.record
        results[number] = result
        on_result(result)
    return [results[number] for number in range(len(points))]


class _Models:
    """The models of a sweep, the last one in memory."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._key: tuple[Any, ...] | None = None
        self._model: Generator | None = None

    def get(self, source: str, config: EvalConfig) -> Generator:
        """A model, ready as a configuration says."""
        key = (source, config.dtype, config.compile)
        if self._model is None or key != self._key:
            self._model = None  # two large models may not have room at once
            common = self._common
            self._model = load_model(source, config, common.device, autoencoder=common.autoencoder)
            self._key = key
        return self._model


def _by_model(plan: Plan, common: Common) -> list[int]:
    """Numbers of the points, those of one model one after the other."""
    sources = [point.keys.get("model", common.model) for point in plan.points]
    return sorted(range(len(sources)), key=lambda number: sources.index(sources[number]))


def _group(checked: Checked) -> tuple[Any, ...]:
    return checked.model, checked.config.dtype, checked.config.compile


def _check(point: Point, common: Common, models: _Models, processes: Processes) -> Checked:
    source = point.keys.get("model", common.model).strip("'\"")
    if holds_images(Path(source)):
        raise ConfigError(f"{source} holds images, and a sweep draws its own: name a model")
    overrides = point.config_overrides
    config = merge_settings(common.protocol, overrides, common.flags)
    generator = models.get(source, config)
    own = generator.sampler.config
    config = merge_settings(common.protocol, overrides, common.flags, own)
    name = f"{common.name or model_name(source)}: {point.label}"
    subject, config = model_subject(
        generator,
        config,
        name,
        steps=_number(point, "steps", int),
        guidance=_number(point, "guidance", float),
    )
    evaluation = Evaluation(subject, config, processes, lambda task, images, total: None)
    key = cache.identity_key(evaluation.identity())
    record = cache.find(key)
    assert subject.sampler is not None
    nfe = None if record is None else record.cost.get("nfe")
    return Checked(
        point=point,
        model=source,
        name=name,
        config=config,
        key=key,
        images=config.count * config.repeats,
        nfe=count_evaluations(generator, subject.sampler) if nfe is None else int(nfe),
        record=record,
        directions=_directions(evaluation),
    )


def _number(point: Point, key: str, kind: type[Any]) -> Any:
    """The value of a short key as a number; None where it is not set."""
    text = point.keys.get(key)
    try:
        return None if text is None else kind(text.strip("'\""))
    except ValueError as error:
        expected = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{key} must be {expected}, got {text!r}") from error


def _directions(evaluation: Evaluation) -> dict[str, bool | None]:
    metrics: Mapping[str, Metric] = evaluation.metrics
    return {
        metric.score_name(info.name, evaluation.extractor): info.lower_is_better
        for metric in metrics.values()
        for info in metric.scores
        if not info.detail
    }


def count_evaluations(generator: Generator, sampler: AnySampler) -> int | None:
    """Network evaluations that an image takes, counted in a run without numbers (meta tensors).

    Returns:
        None where the count depends on what is computed, or the model cannot be run in this way.

    Raises:
        ConfigError: the sampler refuses such a run.
    """
    if generator.family != "diffusion":
        return None
    try:
        model, empty = copy.deepcopy((generator, sampler))
        model.to("meta")
        classes = model.sampled_classes(empty)
        before = model.evaluations
        for _ in model.steps(NoiseStream([0], model.device), [0] if classes else None, empty):
            pass
        return model.evaluations - before
    except GenLabError:
        raise
    except Exception:  # whatever third parties do that needs numbers
        return None


def _run(
    checked: Checked, models: _Models, processes: Processes, on_progress: OnProgress
) -> Result:
    try:
        generator = models.get(checked.model, checked.config)
        subject, config = model_subject(generator, checked.config, checked.name)
        record = Evaluation(subject, config, processes, on_progress).run()
    except SharedError as error:
        return Result(checked=checked, error=str(error))
    except OutputError:
        raise
    except (GenLabError, MemoryError, torch.OutOfMemoryError) as error:
        if processes.count > 1:
            raise  # the others do not know and would wait
        has_message = isinstance(error, GenLabError)
        return Result(checked=checked, error=str(error) if has_message else "out of memory")
    return Result(checked=checked, record=record, fresh=True)
