"""The stochastic samplers of flow matching: SiT's SDE with a noise strength of one's choice."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.choices import check_option
from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.diffusion.flow import PathPoint, path_of
from genlab.errors import ConfigError
from genlab.samplers.base import Grid, Solver, StepResult
from genlab.samplers.solvers.draws import Draws, check_noise
from genlab.samplers.solvers.flow import FlowState, velocity_of

METHODS = ("euler", "heun")
LAST_STEPS = ("mean", "euler", "tweedie")

DIFFUSIONS: Mapping[str, Callable[[PathPoint, float], Tensor]] = {
    "constant": lambda p, norm: torch.full_like(p.t, norm),
    "sbdm": lambda p, norm: norm * p.std * p.speed / p.alpha,
    "sigma": lambda p, norm: norm * p.std,
    "linear": lambda p, norm: norm * (1 - p.t),
    "decreasing": lambda p, norm: 0.25 * (norm * (math.pi * p.t).cos() + 1) ** 2,
    "increasing-decreasing": lambda p, norm: norm * (math.pi * p.t).sin() ** 2,
}
"""Name -> w(t), the strength of the noise: any w >= 0 leads to the same images in the limit."""


@dataclass(frozen=True, kw_only=True)
class FlowSDE(Solver):
    """``dx = (v + w score) dt + sqrt(2 w) dW`` from noise to data, and a last step without noise.

    Choose it for SiT with some 250 steps of the ``flow`` schedule, whose ``last_step`` is the size
    of that last step; `FlowODE` needs far fewer steps.

    Order 1. Costs one network evaluation a step, with ``heun`` two.

    Attributes:
        path: ``linear``, ``gvp`` or ``vp``; the model's own.
        method: ``euler``, or ``heun``: a Heun step that starts from where the noise led.
        diffusion: ``sigma``, ``linear``, ``decreasing``, ``increasing-decreasing``, ``constant``;
            ``sbdm`` is the path's own, infinite at pure noise (VP excepted).
        norm: factor in it, >= 0.
        last: what the last step leads to: the denoised estimate (``tweedie``), along the velocity
            (``euler``), or to the ``mean`` of a noisy step, the official code's default.
        noise: ``independent`` draws of the sample's stream, or those of a ``brownian`` path, which
            does not depend on the number of steps.

    Source: Ma et al. (arXiv:2401.08740), Eq. 5 and Sec. 3.4; the last steps as in the official
    code.
    """

    order: ClassVar[int] = 1
    suits: ClassVar[str] = "any; flow matching (SiT)"

    path: str = "linear"
    method: str = "euler"
    diffusion: str = "sigma"
    norm: float = 1.0
    last: str = "tweedie"
    noise: str = "independent"

    def __post_init__(self) -> None:
        path_of(self.path)
        check_option("the flow-sde solver", "method", self.method, METHODS)
        check_option("the flow-sde solver", "diffusion", self.diffusion, tuple(DIFFUSIONS))
        check_option("the flow-sde solver", "last", self.last, LAST_STEPS)
        if not 0 <= self.norm < math.inf:
            raise ConfigError(f"the flow-sde solver needs norm >= 0, got {self.norm}")
        check_noise("flow-sde", self.noise)

    def strength(self, point: PathPoint) -> Float64[Tensor, "*s"]:
        """The strength w of the noise at a point of the path."""
        return DIFFUSIONS[self.diffusion](point, self.norm)

    @override
    def nfe(self, num_steps: int) -> int:
        return num_steps if self.method == "euler" else 2 * num_steps - 1

    @override
    def draws(self) -> int:
        return 1

    def begin(self, grid: Grid) -> Draws:
        """The noise of the run.

        Raises:
            ConfigError: the noise is infinite where the run starts.
        """
        # LARGEST stands for infinity, so its strength is a huge number.
        if not float(self.strength(path_of(self.path).of(grid.sigmas[0]))) < 1e6:
            raise ConfigError(
                f"diffusion: {self.diffusion} is infinite at pure noise on the path {self.path!r}; "
                "choose another, or a schedule that starts at a smaller sigma_max"
            )
        return Draws(self.noise, grid)

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Draws
    ) -> StepResult:
        field = FlowState(denoiser, path_of(self.path), x.dtype)
        start, end, h = field.ends(step)
        x_t = float(start.alpha) * x
        if step.sigma_next == 0:
            x_t, x1 = self._last_step(field, x_t, start, h)
        else:
            spread = math.sqrt(2 * float(self.strength(start)) * h)
            kick = spread * memory.between(x, step, step.level, step.sigma_next)
            x_t, x1 = self._step(field, x_t, kick, start, h)
        return StepResult(x=x_t / float(end.alpha), x0=x1, memory=memory)

    def _step(
        self, field: FlowState, x_t: Tensor, kick: Tensor, start: PathPoint, h: float
    ) -> tuple[Tensor, Tensor]:
        if self.method == "euler":
            drift, x1 = self._drift(field, x_t, start)
            return x_t + h * drift + kick, x1
        noisy = x_t + kick
        drift, _ = self._drift(field, noisy, start)
        second, x1 = self._drift(field, noisy + h * drift, field.point(float(start.t) + h))
        return noisy + 0.5 * h * (drift + second), x1

    def _last_step(
        self, field: FlowState, x_t: Tensor, start: PathPoint, h: float
    ) -> tuple[Tensor, Tensor]:
        if self.last == "mean":
            drift, x1 = self._drift(field, x_t, start)
            return x_t + h * drift, x1
        x1 = field.estimate(x_t, start)
        return (x1 if self.last == "tweedie" else x_t + h * velocity_of(x_t, x1, start)), x1

    def _drift(self, field: FlowState, x_t: Tensor, point: PathPoint) -> tuple[Tensor, Tensor]:
        """(velocity + w score, the denoised estimate)."""
        x1 = field.estimate(x_t, point)
        score = (float(point.alpha) * x1 - x_t) / float(point.std) ** 2
        return velocity_of(x_t, x1, point) + float(self.strength(point)) * score, x1
