"""Heun's method on the probability-flow ODE, deterministic or with churn: EDM's sampler."""

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
class Heun(Churn):
    """EDM's sampler: an Euler step, corrected by the mean of the slopes at its two ends.

    Choose it by default. Leave ``S_churn`` at 0 for models trained the EDM way on small data sets;
    add churn for ImageNet and for models trained as VP, VE or ADM, with many steps.

    Order 2 (deterministic). Costs two network evaluations a step and one on the last: ``2 N - 1``
    for N steps.

    Source: EDM (arXiv:2206.00364), Algorithm 1 (``S_churn = 0``) and Algorithm 2.
    """

    order: ClassVar[int] = 2

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
            h = leg.sigma_next - leg.sigma_hat
            x0 = denoise(denoiser, x_hat, leg.sigma_hat, condition)
            d = (x_hat - x0) / leg.sigma_hat
            x = x_hat + h * d
            if leg.sigma_next > 0:
                x0 = denoise(denoiser, x, leg.sigma_next, condition)
                d_prime = (x - x0) / leg.sigma_next
                x = x_hat + h * (0.5 * d + 0.5 * d_prime)
            yield leg.done(x, x0)
