"""The family of two-stage Runge-Kutta methods, of which Heun's is one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError
from genlab.samplers.base import SolverStep
from genlab.samplers.solvers.churn import Churn, Leg, announce, denoise


@dataclass(frozen=True, kw_only=True)
class TwoStage(Churn):
    """A second slope at the share ``alpha`` of the step: 1 is Heun, 2/3 Ralston, 1/2 the midpoint.

    Choose it to study that share, or to squeeze a little more out of few steps; ``alpha = 1`` is
    the only member that asks the model at the schedule's own noise levels and nowhere else, hence
    the only one for models with discrete noise levels.

    Order 2 (deterministic). Costs two network evaluations a step and one on the last.

    Attributes:
        alpha: where the second slope is taken, > 0; above 1 it lies beyond the end of the step and
            must still be at positive noise.

    Source: EDM (arXiv:2206.00364), Algorithm 3 with sigma(t) = t and s(t) = 1; churn as in its
    Algorithm 2.
    """

    order: ClassVar[int] = 2

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B C H W"],
        sigmas: Float64[Tensor, " levels"],
        condition: Condition,
        noise: Noise,
    ) -> Iterator[SolverStep]:
        """Run; see `genlab.samplers.base.Solver`.

        Raises:
            ConfigError: the second slope would lie at no noise, or where the model knows none.
        """
        legs = self.legs(denoiser, sigmas)
        self._check_between(denoiser, legs)
        weight = 1 / (2 * self.alpha)
        for leg in announce(denoiser, legs, noise):
            x_hat = self.raise_noise(x, leg, noise)
            h = leg.sigma_next - leg.sigma_hat
            x0 = denoise(denoiser, x_hat, leg.sigma_hat, condition)
            d = (x_hat - x0) / leg.sigma_hat
            x = x_hat + h * d
            if leg.sigma_next > 0:
                sigma_prime = self._between(leg)
                x_prime = x_hat + self.alpha * h * d
                x0 = denoise(denoiser, x_prime, sigma_prime, condition)
                d_prime = (x_prime - x0) / sigma_prime
                x = x_hat + h * ((1 - weight) * d + weight * d_prime)
            yield leg.done(x, x0)

    def _between(self, leg: Leg) -> float:
        """Noise level of the second slope."""
        if self.alpha == 1:
            return leg.sigma_next  # rounding must not move it off the model's grid
        return leg.sigma_hat + self.alpha * (leg.sigma_next - leg.sigma_hat)

    def _check_between(self, denoiser: Denoiser, legs: Sequence[Leg]) -> None:
        between = [self._between(leg) for leg in legs if leg.sigma_next > 0]
        check_positive(between, self.alpha)
        levels = torch.tensor(between, dtype=torch.float64)
        if self.alpha != 1 and not torch.equal(denoiser.round_sigma(levels), levels):
            raise ConfigError(
                f"alpha = {self.alpha:g} asks for noise levels between those of the schedule, and"
                " this model knows discrete ones only; use alpha = 1 or the heun solver"
            )


def check_alpha(alpha: float) -> None:
    """Refuse an ``alpha`` outside (0, infinity)."""
    if not 0 < alpha < math.inf:
        raise ConfigError(
            "a two-stage solver needs alpha > 0 (1 = Heun, 2/3 = Ralston, 1/2 = midpoint), got"
            f" {alpha}"
        )


def check_positive(between: Sequence[float], alpha: float) -> None:
    """Refuse second slopes at or beyond zero noise."""
    if not all(sigma > 0 for sigma in between):
        raise ConfigError(
            f"alpha = {alpha:g} reaches past zero noise in the steps of this schedule; use an alpha"
            " nearer to 1, more steps, or a larger sigma_min"
        )
