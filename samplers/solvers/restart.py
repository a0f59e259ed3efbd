"""Restarts: Heun's method that adds noise at some levels and takes the way down again."""

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from typing_extensions import override

from genlab.diffusion.denoiser import State, StepInfo
from genlab.errors import ConfigError
from genlab.samplers.base import Grid
from genlab.samplers.schedules.karras import karras_sigmas
from genlab.samplers.solvers.churn import fresh_noise
from genlab.samplers.solvers.heun import Heun


@dataclass(frozen=True, kw_only=True)
class Restart(Heun):
    """Heun's method that goes back up by fresh noise and down again, in chosen intervals.

    Choose it where many evaluations are at hand and churn still loses quality: the noise that is
    added undoes errors of earlier steps, as churn's does, while the steps stay those of the ODE.
    A network that removes too much noise wants ``S_noise: 1.003``.

    Order 2 of each way down, as `Heun`. Costs two network evaluations a step and one on the last,
    and ``2 (points - 1) times`` for each interval. One draw a restart, and one a step where churn
    is on.

    Attributes:
        intervals: one list ``[low, high, points, times]`` for each: once the run has come to the
            level of the schedule nearest to ``low``, noise is added up to ``high`` and ``points``
            noise levels lead back down, both ends included; so ``times`` times over. ``low < high``
            within what the model knows, points >= 2, times >= 1. Intervals of one level follow one
            another as they are listed.
        rho: spacing of the levels inside an interval, as in the karras schedule, > 0.
        gamma: churn inside intervals, >= 0: a level between ``S_min`` and ``S_max`` is raised by
            this share of itself. ``S_churn`` is for the other steps.

    Source: Xu et al. (arXiv:2306.14878); its code has ``intervals`` as JSON in the
    order points, times, low, high, and adds no noise at all unless it is given an S_noise.
    """

    order: ClassVar[int] = 2

    intervals: list[list[float]] = field(default_factory=lambda: [[0.06, 0.3, 3, 2]])
    rho: float = 7.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.intervals:
            raise ConfigError("the restart solver needs an interval; without any, take heun")
        for interval in self.intervals:
            if not _is_interval(interval):
                raise ConfigError(
                    "an interval of the restart solver is [low, high, points, times] with 0 < low "
                    "< high and whole numbers points >= 2, times >= 1, such as [0.06, 0.3, 3, 2];"
                    f" got {interval}"
                )
        if not 0 < self.rho < math.inf:
            raise ConfigError(f"the restart solver needs rho > 0, got {self.rho}")
        if not 0 <= self.gamma < math.inf:
            raise ConfigError(f"the restart solver needs gamma >= 0, got {self.gamma}")

    @override
    def nfe(self, num_steps: int) -> int:
        again = sum(2 * (int(points) - 1) * int(times) for _, _, points, times in self.intervals)
        return super().nfe(num_steps) + again

    @override
    def draws(self) -> int:
        """One at each restart, and one a step where there is churn."""
        return 1

    def route(self, grid: Grid) -> Grid:
        """The levels of the schedule with those of the restarts between them.

        Raises:
            ConfigError: the schedule has restarts of its own, or an interval lies at the first
                level, or not above the level where it begins, or where the model knows no noise.
        """
        if grid.restarts:
            raise ConfigError(
                "the noise levels of the schedule rise already, so the restart solver cannot add "
                "intervals; take heun, or another schedule"
            )
        levels = grid.sigmas[:-1]
        inserted: dict[int, list[float]] = {}
        for interval in self.intervals:
            low, high, points, times = interval
            index = int((levels - low).abs().argmin())
            ways = self._way_down(grid, index, high, int(points), interval) * int(times)
            inserted.setdefault(index, []).extend(ways)
        visited: list[float] = []
        for index, level in enumerate(grid.sigmas.tolist()):
            visited += [level, *inserted.get(index, [])]
        return replace(grid, sigmas=torch.tensor(visited, dtype=torch.float64))

    def _way_down(
        self, grid: Grid, index: int, high: float, points: int, interval: list[float]
    ) -> list[float]:
        """The levels from ``high`` to that of a step, rounded to what the model knows."""
        level, noise_levels = float(grid.sigmas[index]), grid.noise_levels
        if index == 0:
            raise ConfigError(
                f"the restart interval {interval} begins nearest to {level:g}, where the run "
                "begins, too; lower the interval, or raise num_steps"
            )
        between = karras_sigmas(points, level, high, self.rho)[1:-1]
        ends = torch.tensor([high], dtype=torch.float64)
        way = noise_levels.round_sigma(torch.cat([ends, between])).tolist()
        if not level < way[0] <= noise_levels.sigma_max or high > noise_levels.sigma_max:
            raise ConfigError(
                f"the restart interval {interval} begins at the schedule's level {level:g} and must"
                f" end above it, and at most at {noise_levels.sigma_max:g}, which this model knows"
            )
        return [*way, level]

    @override
    def raise_levels(self, grid: Grid) -> list[float]:
        """``S_churn`` is spread over the steps outside intervals."""
        ends = grid.sigmas.tolist()
        kinds, base = [], math.inf  # base: the level that the current restart leads back to
        for level, following in itertools.pairwise(ends):
            kinds.append("rise" if following > level else "inside" if level > base else "step")
            base = level if following > level else base
        # Counted, since an edit that starts below an interval leaves it out.
        num_steps = kinds.count("step")
        raised = []
        for level, kind in zip(ends, kinds, strict=False):
            if kind == "step":
                raised.append(self.raise_level(level, num_steps))
            else:
                churned = kind == "inside" and self.S_min <= level <= self.S_max
                raised.append(level * (1 + self.gamma) if churned else level)
        return raised

    @override
    def draw(self, x: State, step: StepInfo) -> State | None:
        """``gamma`` makes a run stochastic, too."""
        if self.S_churn == 0 and self.gamma == 0:
            return None
        return self.S_noise * fresh_noise(x, step)


def _is_interval(interval: list[float]) -> bool:
    if len(interval) != 4:
        return False
    low, high, points, times = interval
    whole = points == int(points) and times == int(times) if math.isfinite(points + times) else 0
    return 0 < low < high < math.inf and bool(whole) and points >= 2 and times >= 1
