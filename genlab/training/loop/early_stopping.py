"""Early stopping: a run ends once a score no longer improves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genlab.errors import ConfigError, nearest
from genlab.training.config import StoppingConfig
from genlab.training.loop.evaluation import Score


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """Why a run ended before its length.

    Attributes:
        metric: that no longer improved.
        form: how it is written (a format specification).
        best: its best value.
        images: that the run had seen then: its snapshots of then are the best ones.
        evaluations: how many there were since.
    """

    metric: str
    form: str
    best: float
    images: int
    evaluations: int

    def describe(self) -> str:
        """In words, as a command prints it."""
        since = "1 evaluation" if self.evaluations == 1 else f"{self.evaluations} evaluations"
        return (
            f"stopped early: {self.metric} has not improved in {since}; it "
            f"was best, {self.best:{self.form}}, after {self.images:,} images, and the averages of "
            "then are kept"
        )


class Stopper:
    """Tracks a score and decides when to stop, equally in every process of a run.

    Args:
        config: which score, and when enough is enough.
        scores: those that the run has.
        intervals: name -> every so many thousand images it is measured; None is never but at the
            end.

    Attributes:
        metric: the score, or None where no run is stopped.
        kimg: see ``intervals``.

    Raises:
        ConfigError: the run has no such score, or does not measure it while it trains.
    """

    def __init__(
        self,
        config: StoppingConfig,
        scores: Mapping[str, Score],
        intervals: Mapping[str, float | None],
    ) -> None:
        self.config, self.metric = config, config.metric
        self._best, self._best_images, self._since = math.nan, 0, 0
        if self.metric is None:
            return
        if self.metric not in scores:
            has = nearest(self.metric, scores) if scores else "it has none"
            raise ConfigError(
                f"stopping.metric={self.metric!r} is no score of this run; {has}; held-out images "
                "(validation.path or validation.split) give one"
            )
        self.score = scores[self.metric]
        self.kimg = intervals[self.metric]
        if self.kimg is None:
            raise ConfigError(
                f"{self.metric} is measured at the end of the run alone, so it cannot stop it; set "
                "output.snapshot_kimg (for previews output.preview_kimg)"
            )

    def note(self, value: float, images: int) -> bool:
        """Add a new value; one that is not finite is no improvement.

        Returns:
            Whether it is the best one so far.
        """
        better = value > self._best if self.score.higher_is_better else value < self._best
        enough = better and abs(value - self._best) > self.config.min_delta
        if math.isfinite(value) and (enough or math.isnan(self._best)):
            self._best, self._best_images, self._since = value, images, 0
            return True
        self._since += 1
        return False

    @property
    def has_best(self) -> bool:
        """Whether some value was the best one so far."""
        return not math.isnan(self._best)

    @property
    def stop(self) -> EarlyStop | None:
        """Why the run is to end, or None."""
        if self.metric is None or self._since < self.config.patience:
            return None
        return EarlyStop(
            metric=self.metric,
            form=self.score.form,
            best=self._best,
            images=self._best_images,
            evaluations=self._since,
        )

    def state_dict(self) -> dict[str, Any]:
        """Its state in plain values, the name of the metric included."""
        best = self._best if self.has_best else None
        return {
            "metric": self.metric,
            "best": best,
            "images": self._best_images,
            "since": self._since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, unless it is of another metric."""
        if self.metric is None or state["metric"] != self.metric:
            return
        self._best = math.nan if state["best"] is None else float(state["best"])
        self._best_images, self._since = int(state["images"]), int(state["since"])


def best_images(state: Mapping[str, Any]) -> int | None:
    """The images that a run had seen when its score was best, by what `Stopper.state_dict` gave."""
    return None if state.get("best") is None else int(state["images"])
