"""Runge-Kutta methods in the time of a flow-matching path: SiT's deterministic samplers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from genlab.choices import check_option
from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.diffusion.flow import Path, PathPoint, path_of
from genlab.samplers.base import Solver, StepResult

Rows = tuple[tuple[float, ...], ...]

METHODS: dict[str, tuple[Rows, tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "midpoint": (((1 / 2,),), (0.0, 1.0)),
    "heun": (((1.0,),), (1 / 2, 1 / 2)),
    "rk4": (((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}
"""Name -> Butcher tableau: the rows below the first, then the weights ("rk4" is the 3/8 rule)."""

NEARLY_DATA = 1e-8
NEARLY_DATA_FLOAT32 = 1e-3
"""Noise levels that stand for 0 where a slope is asked for there. The slope is what an estimate
changes by, over the noise level: an estimate in float32 needs a larger one."""


class FlowState:
    """A denoiser as a velocity field in a path's own frame, ``x_t = alpha x``."""

    def __init__(self, denoiser: ConditionedDenoiser, path: Path, dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.path = path
        exact = dtype == torch.float64 and denoiser.noise_levels.exact
        least = NEARLY_DATA if exact else NEARLY_DATA_FLOAT32
        self.least = max(least, denoiser.noise_levels.sigma_min)

    def ends(self, step: StepInfo) -> tuple[PathPoint, PathPoint, float]:
        """The path where a step begins and ends, and the time between."""
        start, end = (
            self.path.of(torch.tensor(sigma, dtype=torch.float64))
            for sigma in (step.level, step.sigma_next)
        )
        return start, end, float(end.t - start.t)

    def point(self, t: float) -> PathPoint:
        """The path at a time, kept off its end at 1, where no slope could be taken."""
        sigma = self.path.sigma(torch.tensor(t, dtype=torch.float64)).clamp(min=self.least)
        return self.path.of(sigma)

    def estimate(self, x_t: Tensor, point: PathPoint) -> Float[Tensor, "B C H W"]:
        """The denoised estimate x1."""
        alpha = float(point.alpha)
        return self.denoiser(x_t / alpha, float(point.std) / alpha)

    def velocity(
        self, x_t: Float[Tensor, "B C H W"], t: float
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """(dx_t/dt, the denoised estimate)."""
        point = self.point(t)
        x1 = self.estimate(x_t, point)
        return velocity_of(x_t, x1, point), x1


def velocity_of(x_t: Tensor, x1: Tensor, point: PathPoint) -> Float[Tensor, "B C H W"]:
    """``alpha' x1 + std' x0`` with the noise x0 that x_t and x1 leave."""
    noise = (x_t - float(point.alpha) * x1) / float(point.std)
    return float(point.alpha_deriv) * x1 + float(point.std_deriv) * noise


@dataclass(frozen=True, kw_only=True)
class FlowODE(Solver):
    """Follow the velocity field of a path in its own time.

    Choose it for SiT and other models trained by flow matching, with the ``flow`` schedule. It also
    runs on any other diffusion model: then the path is only the frame in which steps are straight.

    Order 2 as built. Costs one network evaluation a step with ``euler``, two with ``heun`` and
    ``midpoint``, four with ``rk4``, and one on the last step unless that is a full one.

    Attributes:
        path: ``linear``, ``gvp`` or ``vp``; the model's own.
        method: ``euler``, ``midpoint``, ``heun`` or ``rk4`` (Kutta's 3/8 rule, order 4).
        full_last_step: whether the last step is one of the method, as in the official code; the
            model must know noise levels down to 0. Otherwise it leads to the denoised estimate, as
            with other solvers.

    Source: Ma et al. (arXiv:2401.08740), Eq. 2; the methods as torchdiffeq has them, which the
    official code calls.
    """

    order: ClassVar[int] = 2
    suits: ClassVar[str] = "any; flow matching (SiT)"

    path: str = "linear"
    method: str = "heun"
    full_last_step: bool = False

    @property
    def on_grid(self) -> bool:  # type: ignore[override]  # here it depends on an option
        """Whether every stage lies at an end of the step."""
        return self.method in ("euler", "heun")

    def __post_init__(self) -> None:
        path_of(self.path)
        check_option("the flow solver", "method", self.method, tuple(METHODS))

    @override
    def nfe(self, num_steps: int) -> int:
        stages = len(METHODS[self.method][1])
        return stages * num_steps - (0 if self.full_last_step else stages - 1)

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        field = FlowState(denoiser, path_of(self.path), x.dtype)
        start, end, h = field.ends(step)
        x_t = float(start.alpha) * x
        if step.sigma_next == 0 and not self.full_last_step:
            x1 = field.estimate(x_t, start)
            return StepResult(x=x1, x0=x1)
        x_t, x1 = self._step(field, x_t, float(start.t), h)
        return StepResult(x=x_t / float(end.alpha), x0=x1)

    def _step(
        self, field: FlowState, x_t: Float[Tensor, "B C H W"], t: float, h: float
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
        """One Runge-Kutta step: the state after it and the last denoised estimate inside."""
        rows, weights = METHODS[self.method]
        slope, x1 = field.velocity(x_t, t)
        slopes = [slope]
        for row in rows:
            inside = x_t + h * _sum(row, slopes)
            slope, x1 = field.velocity(inside, t + sum(row) * h)
            slopes.append(slope)
        return x_t + h * _sum(weights, slopes), x1


def _sum(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    parts = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
