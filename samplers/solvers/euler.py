"""Euler's method on the probability-flow ODE."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import Noise
from genlab.samplers.base import SolverStep
from genlab.samplers.solvers.churn import Churn, announce, denoise


@dataclass(frozen=True, kw_only=True)
class Euler(Churn):
    """Straight steps along ``dx/dsigma = (x - D(x; sigma)) / sigma``: DDIM with eta = 0.

    Choose it for previews, for very few evaluations, or with guidance so strong that second-order
    steps overshoot; `Heun` gives better images for the same number of evaluations otherwise.

    Order 1. Costs one network evaluation a step.

    Source: EDM (arXiv:2206.00364), Algorithm 1 without its correction; churn as in Algorithm 2.
    """

    order: ClassVar[int] = 1

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B C H W"],
        sigmas: Float64[Tensor, " levels"],
        condition: Condition,
        noise: Noise,
    ) -> Iterator[SolverStep]:
        """Run; see `genlab.samplers.base.Solver`."""
        for leg in announce(denoiser, self.legs(denoiser, sigmas), noise):
            x_hat = self.raise_noise(x, leg, noise)
            x0 = denoise(denoiser, x_hat, leg.sigma_hat, condition)
            d = (x_hat - x0) / leg.sigma_hat
            x = x_hat + (leg.sigma_next - leg.sigma_hat) * d
            yield leg.done(x, x0)
