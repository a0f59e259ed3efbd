"""Even steps in a power of sigma: EDM's schedule, and plain even steps."""

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.samplers.schedules.base import NoiseSchedule, ramp


def karras_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> Float64[Tensor, " N"]:
    """Evenly spaced in ``sigma^(1/rho)``; a larger ``rho`` puts more steps at small noise.

    Source: EDM (arXiv:2206.00364), Eq. 5.
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + ramp(num_steps) * (low - high)) ** rho


def linear_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
    """Evenly spaced in sigma: `karras_sigmas` with ``rho = 1``."""
    return sigma_max + ramp(num_steps) * (sigma_min - sigma_max)


@dataclass(frozen=True, kw_only=True)
class Karras(NoiseSchedule):
    """EDM's own schedule: even steps in ``sigma^(1/rho)``.

    Choose it unless a model asks for another.

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

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return karras_sigmas(self.num_steps, sigma_min, sigma_max, self.rho)


@dataclass(frozen=True, kw_only=True)
class Linear(NoiseSchedule):
    """Even steps in sigma, nearly all of them at large noise.

    Choose it as a baseline only.

    Source: EDM (arXiv:2206.00364), Eq. 5 with rho = 1.
    """

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return linear_sigmas(self.num_steps, sigma_min, sigma_max)
