"""Heun's method on the probability-flow ODE, deterministic or with churn: EDM's sampler."""

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.samplers.base import StepResult
from genlab.samplers.solvers.churn import Churn


@dataclass(frozen=True, kw_only=True)
class Heun(Churn):
    """EDM's sampler: an Euler step, corrected by the mean of the slopes at its two ends.

    Choose it by default. Leave ``S_churn`` at 0 for models trained the EDM way on small data sets;
    add churn for ImageNet and for models trained as VP, VE or ADM, with many steps.

    Order 2 (deterministic). Costs two network evaluations a step and one on the last: ``2 N - 1``
    for N steps.

    Source: EDM (arXiv:2206.00364), Algorithm 1 (``S_churn = 0``) and Algorithm 2.
    """

    order: ClassVar[int] = 2

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        x_hat = self.raise_noise(x, step)
        h = step.sigma_next - step.sigma
        x0 = denoiser(x_hat, step.sigma)
        d = (x_hat - x0) / step.sigma
        x = x_hat + h * d
        if step.sigma_next > 0:
            x0 = denoiser(x, step.sigma_next)
            d_prime = (x - x0) / step.sigma_next
            x = x_hat + h * (0.5 * d + 0.5 * d_prime)
        return StepResult(x=x, x0=x0)

    @override
    def nfe(self, num_steps: int) -> int:
        return 2 * num_steps - 1
