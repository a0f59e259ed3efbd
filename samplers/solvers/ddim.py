"""DDIM, with any amount of noise from none to that of DDPM, and its inversion."""

import math
from collections.abc import Iterator
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
from genlab.samplers.solvers.churn import announce, denoise, plan


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """A step towards x0 that keeps as much of the noise as the next level has.

    Choose it for ADM and DiT with the respaced schedule and 25 to 100 steps. With ``eta = 0`` and
    without clipping it is `Euler`, up to where the run starts.

    Order 1. Costs one network evaluation a step.

    Attributes:
        eta: 0 is deterministic and draws nothing, 1 is DDPM with the smaller fixed variance.
        clip: whether x0 is clipped to [-1, 1] in every step, and the noise found anew from it: for
            models of pixels, not of latents.
        keep_noise: whether the noise stays what the model said where x0 is clipped, as diffusers
            has it.

    Source: Song et al. (arXiv:2010.02502), Eq. 12 and 16, in the unscaled frame; classifier
    guidance as in Dhariwal and Nichol (arXiv:2105.05233), Algorithm 2.
    """

    order: ClassVar[int] = 1

    eta: float = 0.0
    clip: bool = False
    keep_noise: bool = False

    def __post_init__(self) -> None:
        if self.keep_noise and not self.clip:
            raise ConfigError("keep_noise has no effect without clip; leave it out")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"DDIM needs 0 <= eta <= 1, got {self.eta}")

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
        """Run; see `genlab.samplers.base.Solver`."""
        legs = plan(sigmas.tolist(), sigmas[:-1].tolist())
        for leg in announce(denoiser, legs, noise):
            x0 = _estimate(denoiser, x, leg.sigma, condition, self.clip and not self.keep_noise)
            eps = (x - x0) / leg.sigma
            if self.keep_noise:
                x0 = x0.clamp(-1, 1)
            shrink = leg.sigma_next / leg.sigma
            up = self.eta * shrink * math.sqrt(leg.sigma**2 - leg.sigma_next**2)
            down = math.sqrt(max(leg.sigma_next**2 - up**2, 0.0))
            x = x0 + down * eps
            if self.eta > 0:
                x = x + up * noise.randn(x.shape[1:], torch.float64).to(x.dtype)
            yield leg.done(x, x0)


def encode(
    denoiser: Denoiser,
    images: Float[Tensor, "B C H W"],
    sigmas: Float64[Tensor, " levels"],
    condition: Condition,
    *,
    clip: bool = False,
) -> Float[Tensor, "B C H W"]:
    """Find the latents from which deterministic `DDIM` comes back to given images, nearly.

    Args:
        denoiser: the model, guided or not.
        images: in [-1, 1], (B, C, H, W), in the dtype that the state is kept in.
        sigmas: the noise levels of sampling: decreasing, with a final 0.
        condition: of the whole batch.
        clip: as the sampler's.

    Returns:
        Standard normal latents for `genlab.samplers.run.sample_steps`. The error falls with the
        number of levels, since each step takes the slope of where it starts.

    Source: Dhariwal and Nichol (arXiv:2105.05233), Appendix F; as in the official code, the images
    are taken for the scaled ones of the least noise level.
    """
    levels = sigmas[:-1].flip(0).tolist()
    x = images * math.hypot(1.0, levels[0])
    for sigma, sigma_next in zip(levels, [*levels[1:], math.inf], strict=True):
        x0 = _estimate(denoiser, x, sigma, condition, clip)
        eps = (x - x0) / sigma
        # The last step leads to pure noise, which is eps itself.
        x = eps if math.isinf(sigma_next) else x0 + sigma_next * eps
    return x


def _estimate(
    denoiser: Denoiser, x: Float[Tensor, "B C H W"], sigma: float, condition: Condition, clip: bool
) -> Float[Tensor, "B C H W"]:
    if not clip:
        return denoise(denoiser, x, sigma, condition)
    level = torch.tensor(sigma, dtype=torch.float64)
    return denoiser.predict(x, level, condition).estimate(level, clip=True)
