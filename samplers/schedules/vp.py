"""The variance-preserving schedule."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.preconditioning import vp_sigma
from genlab.errors import ConfigError
from genlab.samplers.schedules.base import NoiseSchedule, ramp


def vp_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3
) -> Float64[Tensor, " N"]:
    """Evenly spaced in the variance-preserving time, from 1 down to ``epsilon_s``.

    Source: EDM's Table 1, first column, with the betas of `vp_betas`.
    """
    t = 1 + ramp(num_steps) * (epsilon_s - 1)
    return vp_sigma(t, *vp_betas(sigma_min, sigma_max, epsilon_s))


def vp_betas(sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> tuple[float, float]:
    """``(beta_d, beta_min)`` for which sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max.

    Raises:
        ConfigError: with these ends noise would not grow all the way with time.

    Source: EDM's official ablation sampler, which re-derives the betas from the range it runs over.
    """
    low, high = math.log(sigma_min**2 + 1), math.log(sigma_max**2 + 1)
    beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
    beta_min = high - 0.5 * beta_d
    # beta_min may be a little below 0 (EDM's own range gives that): noise has to grow with time
    # between epsilon_s and 1 only, since the last step jumps from epsilon_s to 0.
    if not (beta_min + beta_d * epsilon_s > 0 and beta_min + beta_d > 0):
        raise ConfigError(
            f"no variance-preserving schedule leads from sigma {sigma_max:g} at time 1 to"
            f" {sigma_min:g} at time epsilon_s = {epsilon_s:g}; lower sigma_min or raise epsilon_s"
        )
    return beta_d, beta_min


@dataclass(frozen=True, kw_only=True)
class VP(NoiseSchedule):
    """Even steps in variance-preserving time, as DDPM-like models were first sampled.

    Choose it to reproduce that; `Karras` needs fewer steps.

    Attributes:
        sigma_min: None is the noise level of ``epsilon_s`` with the standard betas (19.9 and 0.1).
        sigma_max: None is the noise level of time 1 with the standard betas, 152.
        epsilon_s: last time before 0, between 0 and 1.

    Source: EDM (arXiv:2206.00364), Table 1, first column; Song et al. (arXiv:2011.13456).
    """

    suits: ClassVar[str] = "any; VP (DDPM)"

    sigma_min: float | None = None  # type: ignore[assignment]  # its default depends on epsilon_s
    sigma_max: float | None = None  # type: ignore[assignment]  # likewise
    epsilon_s: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_s < 1:
            raise ConfigError(f"the vp schedule needs 0 < epsilon_s < 1, got {self.epsilon_s}")
        super().__post_init__()

    def own_range(self) -> tuple[float, float]:
        """The given ends, or those of the standard betas."""
        ends = vp_sigma(torch.tensor([self.epsilon_s, 1.0], dtype=torch.float64), 19.9, 0.1)
        low, high = ends.tolist()
        return (
            low if self.sigma_min is None else self.sigma_min,
            high if self.sigma_max is None else self.sigma_max,
        )

    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """See `vp_sigmas`."""
        return vp_sigmas(self.num_steps, sigma_min, sigma_max, self.epsilon_s)
