"""DPM-Solver-2: a second slope at the geometric middle of the step."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.errors import ConfigError
from genlab.samplers.base import StepResult
from genlab.samplers.solvers.ancestral import Ancestral
from genlab.samplers.solvers.churn import Churn


@dataclass(frozen=True, kw_only=True)
class DPM2(Churn):
    """The midpoint rule in ln sigma: a step over the slope at its geometric middle.

    Choose it to compare with `Heun`, which costs the same and asks at the schedule's own levels.

    Order 2 (deterministic). Costs two network evaluations a step and one on the last: ``2 N - 1``
    for N steps.

    Attributes:
        r: where the second slope is taken, as a share of the step in ln sigma, 0 < r <= 1.

    Source: Lu et al. (arXiv:2206.00927), Algorithm 1, as k-diffusion's sample_dpm_2; ``r`` as in
    diff-sampler; churn as in EDM (arXiv:2206.00364), Algorithm 2.
    """

    order: ClassVar[int] = 2
    on_grid: ClassVar[bool] = False

    r: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.r)

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        x_hat = self.raise_noise(x, step)
        x, x0 = midpoint_step(denoiser, x_hat, step.sigma, step.sigma_next, self.r)
        return StepResult(x=x, x0=x0)

    @override
    def nfe(self, num_steps: int) -> int:
        return 2 * num_steps - 1


@dataclass(frozen=True, kw_only=True)
class DPM2Ancestral(Ancestral):
    """`DPM2` to a lower level, and fresh noise that leads back up.

    Choose it for variety with 20 to 50 steps, where `EulerAncestral` is too coarse.

    Order 1, or 2 where ``eta = 0``. Costs two network evaluations a step and one on the last.

    Source: k-diffusion's sample_dpm_2_ancestral.
    """

    order: ClassVar[int] = 1
    on_grid: ClassVar[bool] = False

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        down, up = self.split(step.level, step.sigma_next)
        x, x0 = midpoint_step(denoiser, x, step.level, down, 0.5)
        return StepResult(x=self.add(x, up, step, memory), x0=x0, memory=memory)

    @override
    def nfe(self, num_steps: int) -> int:
        return 2 * num_steps - 1


def midpoint_step(
    denoiser: ConditionedDenoiser, x: State, sigma: float, sigma_next: float, r: float
) -> tuple[State, State]:
    """(the state at ``sigma_next``, the last denoised estimate); straight where that is 0."""
    x0 = denoiser(x, sigma)
    d = (x - x0) / sigma
    if sigma_next == 0:
        return x + (sigma_next - sigma) * d, x0
    middle = math.exp((1 - r) * math.log(sigma) + r * math.log(sigma_next))
    inside = x + (middle - sigma) * d
    x0 = denoiser(inside, middle)
    d_prime = (inside - x0) / middle
    weight = 1 / (2 * r)
    return x + (sigma_next - sigma) * ((1 - weight) * d + weight * d_prime), x0


def _check_share(r: float) -> None:
    if not 0 < r <= 1:
        raise ConfigError(f"the second slope lies at a share 0 < r <= 1 of the step, got {r}")
