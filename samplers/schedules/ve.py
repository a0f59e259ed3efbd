"""The variance-exploding schedule."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.samplers.schedules.base import NoiseSchedule, ramp


def ve_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
    """Evenly spaced in ln sigma. Source: EDM's Table 1, second column, with ``sigma = sqrt(t)``."""
    ratio = sigma_min**2 / sigma_max**2
    return (sigma_max**2 * ratio ** ramp(num_steps)).sqrt()


@dataclass(frozen=True, kw_only=True)
class VE(NoiseSchedule):
    """Geometric noise levels, as NCSN-like models were first sampled.

    Choose it to reproduce that; `Karras` needs far fewer steps.

    Source: EDM (arXiv:2206.00364), Table 1, second column.
    """

    suits: ClassVar[str] = "any; VE (NCSN)"

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return ve_sigmas(self.num_steps, sigma_min, sigma_max)
