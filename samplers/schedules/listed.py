"""Noise levels that are given one by one."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError
from genlab.samplers.schedules.base import PickedLevels


@dataclass(frozen=True, kw_only=True)
class Levels(PickedLevels):
    """The noise levels that are listed.

    Choose it for levels that were found for one model: ``genlab schedule`` writes such a list.

    Attributes:
        sigmas: noise levels > 0, without the final 0. They decrease; one that lies above the one
            before it is reached by adding noise (a restart).
        num_steps: how many there are, for the reader of a file; None does not say it.

    Source: any; that of ``genlab schedule`` is Chen et al. (arXiv:2405.11326).
    """

    example: ClassVar[Mapping[str, Any]] = {"sigmas": [80, 20, 5, 1.5, 0.5, 0.1]}

    sigmas: list[float] = field(default_factory=list)
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise ConfigError(
                "the levels schedule takes noise levels > 0, without the final 0, got "
                f"{self.sigmas}"
            )
        if any(a == b for a, b in itertools.pairwise(self.sigmas)):
            raise ConfigError("the levels schedule has the same noise level twice in a row")
        if self.sigmas and self.num_steps not in (None, len(self.sigmas)):
            raise ConfigError(
                f"the levels schedule lists {len(self.sigmas)} noise levels and cannot take "
                f"{self.num_steps} steps; make another list ('genlab schedule MODEL --steps "
                f"{self.num_steps}'), or take another schedule"
            )

    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """The noise levels and a final 0.

        Raises:
            ConfigError: there are none, or the model does not know one of them.
        """
        if not self.sigmas:
            raise ConfigError(
                "the levels schedule needs sigmas, a list of noise levels without the final 0; "
                "'genlab schedule MODEL' makes one"
            )
        low, high = min(self.sigmas), max(self.sigmas)
        limits = noise_levels.sigma_min, noise_levels.sigma_max
        # Written with fewer digits than they have, the ends of a model's range are still its ends.
        if low < limits[0] * (1 - 1e-4) or high > limits[1] * (1 + 1e-4):
            raise ConfigError(
                f"the listed noise levels lie between {low:g} and {high:g}, but the model knows "
                f"{limits[0]:g} to {limits[1]:g} only; make a list for this model"
            )
        levels = torch.tensor([*self.sigmas, 0.0], dtype=torch.float64)
        return torch.cat([levels[:-1].clamp(*limits), levels[-1:]])

    def sigma_range(self, noise_levels: NoiseLevels) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the list."""
        levels = self(noise_levels)[:-1]
        return float(levels.min()), float(levels.max())
