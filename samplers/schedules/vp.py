"""The variance-preserving schedule."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.preconditioning import vp_sigma
from genlab.errors import ConfigError
from genlab.samplers.schedules.base import NoiseSchedule, ramp

BETA_D, BETA_MIN = 19.9, 0.1
"""The standard betas: they grow from 0.1 at time 0 to 20 at time 1."""


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
        sigma_min: None is the noise level of ``epsilon_s`` with the betas.
        sigma_max: None is the noise level of time 1 with the betas; with the standard ones 152.
        epsilon_s: last time before 0, between 0 and 1.
        beta_d: growth of beta over the time from 0 to 1, > 0. The betas make the ends that are not
            given; where the model's range cuts the ends, the betas follow from it.
        beta_min: beta at time 0, > 0.

    Source: EDM (arXiv:2206.00364), Table 1, first column; Song et al. (arXiv:2011.13456); with the
    betas given, k-diffusion's get_sigmas_vp.
    """

    suits: ClassVar[str] = "any; VP (DDPM)"

    sigma_min: float | None = None  # type: ignore[assignment]  # its default depends on epsilon_s
    sigma_max: float | None = None  # type: ignore[assignment]  # likewise
    epsilon_s: float = 1e-3
    beta_d: float = BETA_D
    beta_min: float = BETA_MIN

    def __post_init__(self) -> None:
        if not 0 < self.epsilon_s < 1:
            raise ConfigError(f"the vp schedule needs 0 < epsilon_s < 1, got {self.epsilon_s}")
        if not (0 < self.beta_d < math.inf and 0 < self.beta_min < math.inf):
            raise ConfigError(
                f"the vp schedule needs beta_d > 0 and beta_min > 0, got {self.beta_d:g} and "
                f"{self.beta_min:g}"
            )
        has_range = self.sigma_min is not None and self.sigma_max is not None
        if has_range and (self.beta_d, self.beta_min) != (BETA_D, BETA_MIN):
            raise ConfigError(
                "beta_d and beta_min have no effect on the vp schedule with sigma_min and sigma_max"
                "; leave out the one or the other"
            )
        super().__post_init__()

    def own_range(self) -> tuple[float, float]:
        """The given ends, or those of the betas."""
        times = torch.tensor([self.epsilon_s, 1.0], dtype=torch.float64)
        ends = vp_sigma(times, self.beta_d, self.beta_min)
        low, high = ends.tolist()
        return (
            low if self.sigma_min is None else self.sigma_min,
            high if self.sigma_max is None else self.sigma_max,
        )

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return vp_sigmas(self.num_steps, sigma_min, sigma_max, self.epsilon_s)
