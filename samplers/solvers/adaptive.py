"""An adaptive method: steps as long as a tolerance allows, for each sample its own."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo, rows
from genlab.errors import ConfigError, SamplingError
from genlab.samplers.base import Solver, StepResult

ORDER = 5

TABLEAU = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""Weights of the slopes so far in each further stage; the last row is the step itself."""

PLACES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
"""Where in the step these stages lie."""

ERROR = (
    35 / 384 - 5179 / 57600,
    0.0,
    500 / 1113 - 7571 / 16695,
    125 / 192 - 393 / 640,
    -2187 / 6784 + 92097 / 339200,
    11 / 84 - 187 / 2100,
    -1 / 40,
)
"""Weights of the difference between the solutions of order 5 and 4."""

MAX_ATTEMPTS = 1000
"""Of one sample between two levels of the schedule."""

FIRST = 0.5
"""What a run tries first, in ln sigma: over much more than this the error is not what it looks."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Memory:
    """The memory from one step to the next.

    Attributes:
        x: the state that it returned; another one means that a hook has replaced it.
        slope: dx / d ln sigma there.
        length: of the last free attempt of each sample in ln sigma, (B,).
    """

    x: State
    slope: State
    length: Float[Tensor, " B"]


@dataclass(frozen=True, kw_only=True)
class Adaptive(Solver):
    """Dormand and Prince's method of order 5 in ln sigma, with steps that a tolerance decides.

    Choose it for a reference solution without looking for a number of steps; for images `Heun`,
    `DPMSolverPP` and `UniPC` come as close with fewer evaluations. The levels of the schedule are
    points that every run stops at: where pictures are shown, guidance looks at the level and hooks
    may act. Few of them are enough (``num_steps: 2`` has none on the way); the step from the last
    to 0 leads to the denoised estimate.

    Order 5. Costs six network evaluations an attempted step, and one more after a replaced state
    and, under guidance, at each level of the schedule; how many steps there are is known when the
    run has ended.

    Every sample has steps of its own, so that its image does not depend on its batch but for the
    rounding of the network, whose effect the tolerance bounds. All samples are evaluated as one
    batch until the last of them arrives; what a sample costs is therefore the slowest one's.
    Whether all have arrived is read once an attempt, so that a GPU is waited for there.

    Attributes:
        rtol: error that a step may have, as a share of the state, > 0.
        atol: what is allowed beside it, in units of the images, >= 0. The error of a sample is the
            root mean square over its numbers. A network in float32 has noise near 1e-6.

    Source: Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae", J. Comput. Appl.
    Math. 6; Song et al. (arXiv:2011.13456), Sec. 4.3, for its use here; the tolerances, the norm
    and the growth of steps are torchdiffeq's ``dopri5``.
    """

    order: ClassVar[int] = ORDER
    on_grid: ClassVar[bool] = False

    rtol: float = 1e-3
    atol: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.rtol < math.inf and 0 <= self.atol < math.inf):
            raise ConfigError(
                f"the adaptive solver needs rtol > 0 and atol >= 0, got {self.rtol} and {self.atol}"
            )

    def nfe(self, num_steps: int) -> None:
        """Unknown before the run: it depends on the images."""

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: _Memory | None
    ) -> StepResult:
        """Go from ``step.level`` to ``step.sigma_next``.

        Raises:
            SamplingError: the tolerance cannot be reached.
        """
        if step.sigma_next == 0:
            x0 = denoiser(x, step.level)
            return StepResult(x=x0, x0=x0)
        start, end = math.log(step.level), math.log(step.sigma_next)
        if memory is None or memory.x is not x or denoiser.denoiser.changes_by_step:
            slope = x - denoiser(x, step.level)
            length = None if memory is None else memory.length
        else:
            slope, length = memory.slope, memory.length
        flow = _Flow(denoiser, self.rtol, self.atol)
        memory = flow.between(x, slope, start, end, length)
        return StepResult(x=memory.x, x0=memory.x - memory.slope, memory=memory)


class _Flow:
    """The ODE ``dx / d ln sigma = x - D(x; sigma)``, for each sample at a noise level of its own.

    Args:
        denoiser: of the batch.
        rtol: see `Adaptive`.
        atol: see `Adaptive`.
    """

    def __init__(self, denoiser: ConditionedDenoiser, rtol: float, atol: float) -> None:
        self.denoiser, self.rtol, self.atol = denoiser, rtol, atol

    def slope(self, x: State, time: Float[Tensor, " B"]) -> State:
        """The slope dx / dt at the times ``t = ln sigma``."""
        return x - self.denoiser.denoiser(x, time.exp(), self.denoiser.condition)

    def between(
        self,
        x: State,
        slope: State,
        start: float,
        end: float,
        length: Float[Tensor, " B"] | None,
    ) -> _Memory:
        """Follow the ODE from one time to another.

        Args:
            x: at the start, (B, C, H, W).
            slope: there.
            start: ln sigma at the start.
            end: ln sigma at the end.
            length: what to try first, for each sample; None tries `FIRST`.

        Raises:
            SamplingError: a sample needs more than `MAX_ATTEMPTS`.
        """
        direction = 1.0 if end > start else -1.0
        left = torch.full_like(x[:, 0, 0, 0], abs(end - start))
        length = left.clamp(max=FIRST) if length is None else length
        for _ in range(MAX_ATTEMPTS):
            # A sample that has arrived goes on with steps of no length, which change nothing.
            h = torch.minimum(length, left)
            tried, end_slope, error = self._attempt(x, slope, end - direction * left, direction * h)
            accepted = error <= 1
            taken = accepted.reshape(-1, 1, 1, 1)
            x, slope = torch.where(taken, tried, x), torch.where(taken, end_slope, slope)
            # The last step of the way may have been cut short: what was free to try is kept.
            length = torch.where(accepted & (h < length), length, h * _growth(error))
            left = torch.where(accepted, torch.where(h == left, 0.0, left - h), left)
            if bool((left == 0).all()):
                return _Memory(x=x, slope=slope, length=length)
        raise SamplingError(
            f"the adaptive solver cannot reach rtol {self.rtol:g} and atol {self.atol:g} near sigma"
            f" {math.exp(end - direction * float(left.max())):.3g}; raise them, or take heun"
        )

    def _attempt(
        self, x: State, slope: State, time: Float[Tensor, " B"], h: Float[Tensor, " B"]
    ) -> tuple[State, State, Float[Tensor, " B"]]:
        """One step of every sample: (its end, the slope there, the error over what is allowed)."""
        slopes, by, inside = [slope], rows(h, x), x
        for weights, place in zip(TABLEAU, PLACES, strict=True):
            inside = x + by * _sum(weights, slopes)
            slopes.append(self.slope(inside, time + place * h))
        allowed = self.atol + self.rtol * torch.maximum(x.abs(), inside.abs())
        error = (by * _sum(ERROR, slopes) / allowed).flatten(1).square().mean(1).sqrt()
        return inside, slopes[-1], error


def _growth(error: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The factor of the next step's length: 0.2 to 10, and at least 1 after an accepted step."""
    factor = (0.9 * error.clamp(min=1e-10) ** (-1 / ORDER)).clamp(0.2, 10.0)
    return torch.where(error < 1, factor.clamp(min=1.0), factor)


def _sum(weights: tuple[float, ...], slopes: list[State]) -> State:
    parts = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return torch.stack(parts).sum(0)
