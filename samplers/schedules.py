"""Noise schedules: which noise levels a run visits.

Pure functions first, then the dataclasses that configs name.

Every function returns ``num_steps`` decreasing noise levels from ``sigma_max`` down to
``sigma_min``, in float64 on the CPU; the final 0 is added by `NoiseSchedule`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.preconditioning import iddpm_table, vp_sigma
from genlab.errors import ConfigError


def karras_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> Float64[Tensor, " N"]:
    """Evenly spaced in ``sigma^(1/rho)``; a larger ``rho`` puts more steps at small noise.

    Source: EDM (arXiv:2206.00364), Eq. 5.
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + _ramp(num_steps) * (low - high)) ** rho


def linear_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
    """Evenly spaced in sigma: `karras_sigmas` with ``rho = 1``."""
    return sigma_max + _ramp(num_steps) * (sigma_min - sigma_max)


def ve_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
    """Evenly spaced in ln sigma. Source: EDM's Table 1, second column, with ``sigma = sqrt(t)``."""
    ratio = sigma_min**2 / sigma_max**2
    return (sigma_max**2 * ratio ** _ramp(num_steps)).sqrt()


def vp_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3
) -> Float64[Tensor, " N"]:
    """Evenly spaced in the variance-preserving time, from 1 down to ``epsilon_s``.

    Source: EDM's Table 1, first column, with the betas of `vp_betas`.
    """
    t = 1 + _ramp(num_steps) * (epsilon_s - 1)
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


def cosine_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
    """Evenly spaced in the angle ``arctan(sigma)``, in which alpha_bar = cos^2.

    Source: Nichol and Dhariwal (arXiv:2102.09672), Eq. 17; its offset s is what ``sigma_min`` is
        here.
    """
    high, low = math.atan(sigma_max), math.atan(sigma_min)
    return (high + _ramp(num_steps) * (low - high)).tan()


def iddpm_sigmas(
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
) -> Float64[Tensor, " N"]:
    """Evenly spaced among those of iDDPM's M noise levels that lie in the range.

    Raises:
        ConfigError: none of them lies in the range.

    Source: EDM's Table 1, third column, as the official ablation sampler picks them.
    """
    u = iddpm_table(C_1, C_2, M, torch.float64)
    u = u[(u >= sigma_min) & (u <= sigma_max)]
    if len(u) == 0:
        raise ConfigError(
            f"none of iDDPM's {M} noise levels lies between {sigma_min:g} and {sigma_max:g}; widen"
            " the range"
        )
    # Multiplied in this order because ties are rounded: 0.5 must be the same 0.5 as officially.
    step = (len(u) - 1) / max(num_steps - 1, 1)
    return u[(step * torch.arange(num_steps, dtype=torch.float64)).round().to(torch.int64)]


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule(ABC):
    """What all schedules share.

    Attributes:
        num_steps: solver steps, >= 1; the noise levels are ``num_steps`` and a final 0.
        sigma_min: last noise level before 0, > 0; raised to what the model knows.
        sigma_max: first noise level; lowered to what the model knows.
    """

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"a noise schedule needs num_steps >= 1, got {self.num_steps}")
        low, high = self.own_range()
        if not 0 < low < high < math.inf:
            raise ConfigError(
                f"a noise schedule needs 0 < sigma_min < sigma_max, got sigma_min = {low:g} and"
                f" sigma_max = {high:g}"
            )

    @abstractmethod
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """The noise levels between these two ends, decreasing, without the final 0."""

    def own_range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max) as asked for, whatever the model."""
        return self.sigma_min, self.sigma_max

    def sigma_range(self, denoiser: Denoiser) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the run: the schedule's own, clipped to what the model knows.

        Raises:
            ConfigError: the two do not overlap.
        """
        own = self.own_range()
        low, high = max(own[0], denoiser.sigma_min), min(own[1], denoiser.sigma_max)
        if not low < high:
            raise ConfigError(
                f"the schedule runs from sigma {own[1]:g} to {own[0]:g}, but the model knows"
                f" {denoiser.sigma_min:g} to {denoiser.sigma_max:g} only; choose sigma_min and"
                " sigma_max within that"
            )
        return low, high

    def __call__(self, denoiser: Denoiser) -> Float64[Tensor, " levels"]:
        """``num_steps`` decreasing noise levels and a final 0, on the CPU, not yet rounded."""
        levels = self.levels(*self.sigma_range(denoiser))
        return torch.cat([levels, levels.new_zeros(1)])


@dataclass(frozen=True, kw_only=True)
class Karras(NoiseSchedule):
    """EDM's own schedule: the one to choose unless a model asks for another.

    Attributes:
        rho: 7 spreads steps for the best images, 3 nearly equalises the error of each step
            (inversion, editing), 1 is linear in sigma.

    Source: EDM (arXiv:2206.00364), Eq. 5 and Sec. 3.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rho < math.inf:
            raise ConfigError(f"the karras schedule needs rho > 0, got {self.rho}")

    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """See `karras_sigmas`."""
        return karras_sigmas(self.num_steps, sigma_min, sigma_max, self.rho)


@dataclass(frozen=True, kw_only=True)
class VP(NoiseSchedule):
    """Even steps in variance-preserving time, as DDPM-like models were first sampled.

    Choose it to reproduce that; Karras needs fewer steps.

    Attributes:
        sigma_min: None is the noise level of ``epsilon_s`` with the standard betas (19.9 and 0.1).
        sigma_max: None is the noise level of time 1 with the standard betas, 152.
        epsilon_s: last time before 0, between 0 and 1.

    Source: EDM's Table 1, first column (Song et al., arXiv:2011.13456).
    """

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


@dataclass(frozen=True, kw_only=True)
class VE(NoiseSchedule):
    """Geometric noise levels, as NCSN-like models were first sampled.

    Choose it to reproduce that; Karras needs far fewer steps. Source: EDM's Table 1, second column.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """See `ve_sigmas`."""
        return ve_sigmas(self.num_steps, sigma_min, sigma_max)


@dataclass(frozen=True, kw_only=True)
class IDDPM(NoiseSchedule):
    """Even steps among iDDPM's discrete noise levels, as those models were first sampled.

    Attributes:
        C_1: as the model's, > 0.
        C_2: as the model's, >= 0.
        M: number of noise levels of the model, >= 1.

    Source: EDM's Table 1, third column.
    """

    sigma_max: float = 81.0
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.C_1 > 0 and self.C_2 >= 0 and self.M >= 1):
            raise ConfigError(
                "the iddpm schedule needs C_1 > 0, C_2 >= 0 and M >= 1, got"
                f" {self.C_1:g}, {self.C_2:g} and {self.M}"
            )

    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """See `iddpm_sigmas`."""
        return iddpm_sigmas(self.num_steps, sigma_min, sigma_max, self.C_1, self.C_2, self.M)


@dataclass(frozen=True, kw_only=True)
class Cosine(NoiseSchedule):
    """Even steps in the angle of the cosine schedule: most of them near sigma = 1.

    Choose it for models trained with the cosine schedule. Source: Nichol and Dhariwal
    (arXiv:2102.09672), Eq. 17.
    """

    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """See `cosine_sigmas`."""
        return cosine_sigmas(self.num_steps, sigma_min, sigma_max)


@dataclass(frozen=True, kw_only=True)
class Linear(NoiseSchedule):
    """Even steps in sigma: nearly all at large noise, so a baseline rather than a choice."""

    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """See `linear_sigmas`."""
        return linear_sigmas(self.num_steps, sigma_min, sigma_max)


class PickedLevels(ABC):
    """What schedules share whose range is that of the noise levels they pick for a model."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser) -> Float64[Tensor, " levels"]:
        """See `genlab.samplers.base.Schedule`."""

    def sigma_range(self, denoiser: Denoiser) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the run."""
        sigmas = self(denoiser)
        return float(sigmas[-2]), float(sigmas[0])


def _ramp(num_steps: int) -> Float64[Tensor, " N"]:
    """0 to 1 in ``num_steps`` even steps; a single step stands at 0, the large-noise end."""
    return torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
