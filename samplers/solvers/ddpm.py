"""DDPM's ancestral sampling."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import FIXED_VARIANCES, Denoiser
from genlab.diffusion.discrete import Chain
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError, nearest
from genlab.samplers.base import SolverStep
from genlab.samplers.solvers.churn import announce, plan, refuse_repeats


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """A random step along the reverse Markov chain: its mean from x0, its variance from the model.

    Choose it for models with a learned variance (ADM, improved DDPM, DiT), with the respaced
    schedule and about 250 steps; `DDIM` and `Heun` need far fewer.

    Order 1: the mean of a step is that of an Euler step, of the stochastic equation. Costs one
    network evaluation a step. Noise is drawn on every step; that of the last one is not used.

    Attributes:
        clip: whether x0 is clipped to [-1, 1] in every step: for models of pixels, not of latents.
        variance: None is what the model says; ``fixed_small`` and ``fixed_large`` overrule it.

    Source: Ho et al. (arXiv:2006.11239), Algorithm 2, with the learned variance of Nichol and
    Dhariwal (arXiv:2102.09672), Eq. 15, and classifier guidance as in Dhariwal and Nichol
    (arXiv:2105.05233), Algorithm 1, whose gradient the official code takes at x, not at the mean.
    """

    order: ClassVar[int] = 1

    clip: bool = False
    variance: str | None = None

    def __post_init__(self) -> None:
        if self.variance is not None and self.variance not in FIXED_VARIANCES:
            raise ConfigError(
                "the ddpm solver's variance is a fixed one, or none for the model's own, got "
                f"{self.variance!r}; {nearest(self.variance, FIXED_VARIANCES)}"
            )

    def start_std(self, sigma: float) -> float:
        """That of unit noise in the scaled frame, where such chains begin."""
        return math.hypot(1.0, sigma)

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
            ConfigError: the model predicts a variance, and a guidance does not pass it on; or it
                predicts one between two bounds, and two noise levels are the same.
        """
        chain = Chain(sigmas[:-1].flip(0))
        kind = self.variance or denoiser.variance
        if kind == "learned_range":
            refuse_repeats("ddpm with a learned variance", sigmas)
        legs = plan(sigmas.tolist(), sigmas[:-1].tolist())
        for leg in announce(denoiser, legs, noise):
            sigma = torch.tensor(leg.sigma, dtype=torch.float64)
            said = denoiser.predict(x, sigma, condition)
            x0 = said.x0.clamp(-1, 1) if self.clip else said.x0
            step = len(chain) - 1 - leg.index
            log_variance = chain.log_variance(step, kind, said.variance)
            # Both frames agree up to the scale of the level: sqrt(alpha_bar) x is the scaled one.
            scale, scale_next = math.hypot(1, leg.sigma), math.hypot(1, leg.sigma_next)
            mean = x0 + float(chain.shrinkage[step]) * (x - x0)
            if said.score is not None:
                mean = mean + log_variance.exp() * (scale * scale_next) * said.score
            fresh = noise.randn(x.shape[1:], torch.float64).to(x.dtype)
            std = (0.5 * log_variance).exp() * scale_next
            x = mean + std * fresh if leg.sigma_next > 0 else mean
            yield leg.done(x, x0)
