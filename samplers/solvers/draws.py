"""Sources of noise for stochastic solvers: the samples' streams, or Brownian paths."""

from genlab.choices import check_option
from genlab.diffusion.brownian import BrownianPath
from genlab.diffusion.denoiser import State, StepInfo
from genlab.samplers.base import Grid
from genlab.samplers.solvers.churn import fresh_noise

NOISES = ("independent", "brownian")
"""``independent`` draws follow one another in each sample's stream. A ``brownian`` path is the same
for any number of steps, so that more steps refine a picture rather than draw another."""


class Draws:
    """The noise of one run.

    Args:
        kind: one of `NOISES`.
        grid: the levels of the run, over which a path is laid.
    """

    def __init__(self, kind: str, grid: Grid) -> None:
        levels = grid.sigmas[grid.sigmas > 0]
        self._ends = float(levels.min()), float(levels.max())
        self._is_brownian = kind == "brownian"
        self._path: BrownianPath | None = None

    def between(self, x: State, step: StepInfo, sigma: float, sigma_next: float) -> State:
        """Unit normal noise between two levels, in the shape and dtype of the state ``x``."""
        if not self._is_brownian:
            return fresh_noise(x, step)
        if self._path is None:  # the batch's noise is known with its first step
            # After a restart the same levels come again, and need noise of their own.
            noise = step.noise.fork(f"restart {step.index}") if step.index else step.noise
            self._path = BrownianPath(noise, x.shape[1:], *self._ends)
        return self._path(sigma, sigma_next).to(x.dtype)


def check_noise(solver: str, noise: str) -> None:
    """Refuse an unknown kind of noise."""
    check_option(f"the {solver} solver", "noise", noise, NOISES)
