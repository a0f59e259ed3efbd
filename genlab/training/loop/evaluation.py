"""Evaluations of a run beside its objective's: at intervals, and of its previews.

Their values stand in log.jsonl beside the objective's own scores, and a run may be stopped by them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from genlab.generators.base import Generator
from genlab.samplers.base import AnySampler
from genlab.training.loop.preview import Preview
from genlab.training.loop.state import Progress


@dataclass(frozen=True, kw_only=True)
class Score:
    """A value in the log.

    Attributes:
        form: how it is written (a format specification).
        higher_is_better: which way is better.
    """

    form: str = ".4g"
    higher_is_better: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated.

    Attributes:
        progress: where the run stands.
        network: with the average by half-life, in evaluation mode; it must not be changed.
        generator: around it; None where the run trains none.
        sampler: how previews are drawn; None where there are none.
        folder: of the run.
    """

    progress: Progress
    network: nn.Module
    generator: Generator | None
    sampler: AnySampler | None
    folder: Path


@runtime_checkable
class Evaluation(Protocol):
    """Judges the averaged weights while a run trains; called in the main process alone.

    It is called at the end of a run, too, but not where a signal stops it.
    """

    @property
    def scores(self) -> Mapping[str, Score]:
        """What it measures."""

    @property
    def kimg(self) -> float | None:
        """Every so many thousand images; None is each time that snapshots are stored."""

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        """Measure.

        Returns:
            A value for each of `scores`; the same ones for the same weights, so that they can be
            compared.
        """


@runtime_checkable
class Inspection(Protocol):
    """Looks at the previews of a run; called in the main process alone."""

    @property
    def scores(self) -> Mapping[str, Score]:
        """What it measures."""

    def __call__(self, preview: Preview, progress: Progress) -> Mapping[str, float]:
        """Measure.

        Returns:
            Values for some of `scores`.
        """


def objective_scores(objective: Any) -> dict[str, Score]:
    """The scores of an objective on held-out images."""
    return {
        name: Score(form=form, higher_is_better=name in objective.higher_is_better)
        for name, form in objective.scores.items()
    }
