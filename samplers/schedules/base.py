"""The base classes of noise schedules.

Each file has a pure function (``num_steps`` decreasing noise levels from ``sigma_max`` down to
``sigma_min``, in float64 on the CPU; the final 0 is added by `NoiseSchedule`) and the dataclass
that configs name.
"""

import math
import reprlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError

MOST_STEPS = 100_000
"""Of one run; as many as the discrete models have noise levels at most."""


def check_num_steps(num_steps: int) -> None:
    """Refuse numbers of steps that no run has; a downloaded model may ask for any.

    Raises:
        ConfigError: tells the bounds.
    """
    if num_steps < 1:
        raise ConfigError(f"a noise schedule needs num_steps >= 1, got {num_steps}")
    if num_steps > MOST_STEPS:
        raise ConfigError(
            f"a noise schedule takes at most {MOST_STEPS:,} steps, got {reprlib.repr(num_steps)}"
        )


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule(ABC):
    """What all schedules share.

    Attributes:
        num_steps: solver steps, >= 1; the noise levels are ``num_steps`` and a final 0.
        sigma_min: last noise level before 0, > 0; raised to what the model knows.
        sigma_max: first noise level; lowered to what the model knows.
    """

    suits: ClassVar[str] = "any"

    num_steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
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

    def sigma_range(self, noise_levels: NoiseLevels) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the run: the schedule's own, clipped to what the model knows.

        Raises:
            ConfigError: the two do not overlap.
        """
        own, limits = self.own_range(), (noise_levels.sigma_min, noise_levels.sigma_max)
        low, high = max(own[0], limits[0]), min(own[1], limits[1])
        if not low < high:
            raise ConfigError(
                f"the schedule runs from sigma {own[1]:g} to {own[0]:g}, but the model knows"
                f" {limits[0]:g} to {limits[1]:g} only; choose sigma_min and sigma_max within that"
            )
        return low, high

    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """``num_steps`` decreasing noise levels and a final 0, on the CPU, not yet rounded."""
        levels = self.levels(*self.sigma_range(noise_levels))
        return torch.cat([levels, levels.new_zeros(1)])


class PickedLevels(ABC):
    """What schedules share whose range is that of the noise levels they pick for a model."""

    @abstractmethod
    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """The decreasing noise levels of a run for this model, and a final 0."""

    def sigma_range(self, noise_levels: NoiseLevels) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the run."""
        sigmas = self(noise_levels)
        return float(sigmas[-2]), float(sigmas[0])


def ramp(num_steps: int) -> Float64[Tensor, " N"]:
    """0 to 1 in ``num_steps`` even steps; a single step stands at 0, the large-noise end."""
    return torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
