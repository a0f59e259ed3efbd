"""The cosine schedule."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.samplers.schedules.base import NoiseSchedule, ramp


def cosine_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
    """Evenly spaced in the angle ``arctan(sigma)``, in which alpha_bar = cos^2.

    Source: Nichol and Dhariwal (arXiv:2102.09672), Eq. 17; its offset s is what ``sigma_min`` is
        here.
    """
    high, low = math.atan(sigma_max), math.atan(sigma_min)
    return (high + ramp(num_steps) * (low - high)).tan()


@dataclass(frozen=True, kw_only=True)
class Cosine(NoiseSchedule):
    """Even steps in the angle of the cosine schedule: most of them near sigma = 1.

    Choose it for models trained with the cosine schedule.

    Source: Nichol and Dhariwal (arXiv:2102.09672), Eq. 17.
    """

    suits: ClassVar[str] = "any; trained with the cosine schedule"

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return cosine_sigmas(self.num_steps, sigma_min, sigma_max)
