"""Euler's method on the probability-flow ODE."""

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.samplers.base import StepResult
from genlab.samplers.solvers.churn import Churn


@dataclass(frozen=True, kw_only=True)
class Euler(Churn):
    """Straight steps along ``dx/dsigma = (x - D(x; sigma)) / sigma``: DDIM with eta = 0.

    Choose it for previews, for very few evaluations, or with guidance so strong that second-order
    steps overshoot; `Heun` gives better images for the same number of evaluations otherwise.

    Order 1. Costs one network evaluation a step.

    Source: EDM (arXiv:2206.00364), Algorithm 1 without its correction; churn as in Algorithm 2.
    """

    order: ClassVar[int] = 1

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        x_hat = self.raise_noise(x, step)
        x0 = denoiser(x_hat, step.sigma)
        d = (x_hat - x0) / step.sigma
        return StepResult(x=x_hat + (step.sigma_next - step.sigma) * d, x0=x0)
