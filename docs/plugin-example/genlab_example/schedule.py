"""A schedule: even steps in the logarithm of sigma, closer together at small noise if wished."""

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from genlab.errors import ConfigError
from genlab.samplers.schedules.base import NoiseSchedule, ramp


@dataclass(frozen=True, kw_only=True)
class LogLinear(NoiseSchedule):
    """``log sigma = log sigma_max + ramp^power (log sigma_min - log sigma_max)``.

    Attributes:
        power: > 0; 1 takes even steps in log sigma, below 1 more of them are at small noise.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.power < math.inf:
            raise ConfigError(f"the log-linear schedule needs power > 0, got {self.power}")

    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        """See `NoiseSchedule.levels`."""
        return sigma_max * (sigma_min / sigma_max) ** (ramp(self.num_steps) ** self.power)
