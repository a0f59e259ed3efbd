"""Even steps in ln sigma, and in a power of it."""

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.samplers.schedules.base import NoiseSchedule, ramp


def polyexponential_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0
) -> Float64[Tensor, " N"]:
    """``ln sigma = ln sigma_min + u^rho (ln sigma_max - ln sigma_min)`` for even u from 1 to 0.

    Source: k-diffusion's get_sigmas_polyexponential.
    """
    low, high = math.log(sigma_min), math.log(sigma_max)
    return (low + (1 - ramp(num_steps)) ** rho * (high - low)).exp()


@dataclass(frozen=True, kw_only=True)
class Exponential(NoiseSchedule):
    """Even steps in ln sigma.

    Choose it with `DPMSolverPP` and `UniPC`, whose formulas are of ``lambda = -ln sigma``: all of
    their steps are then equally long. It is the schedule of DPM-Solver ("uniform in lambda",
    diffusers' ``use_lu_lambdas``), also known here as ``lu``, and `VE` has the same levels between
    the same ends.

    Source: Lu et al. (arXiv:2206.00927); k-diffusion's get_sigmas_exponential.
    """

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return polyexponential_sigmas(self.num_steps, sigma_min, sigma_max)


@dataclass(frozen=True, kw_only=True)
class Polyexponential(NoiseSchedule):
    """Even steps in a power of where ln sigma stands between its ends.

    Choose it to move steps of `Exponential` to small noise (``rho`` above 1) or to large noise
    (below 1).

    Attributes:
        rho: > 0; 1 is `Exponential`.

    Source: k-diffusion's get_sigmas_polyexponential.
    """

    rho: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rho < math.inf:
            raise ConfigError(f"the polyexponential schedule needs rho > 0, got {self.rho}")

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return polyexponential_sigmas(self.num_steps, sigma_min, sigma_max, self.rho)
