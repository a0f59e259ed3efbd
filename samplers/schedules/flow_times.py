"""The schedule of flow matching: even steps in the time of a path."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.flow import LARGEST, path_of
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError
from genlab.samplers.schedules.base import PickedLevels, check_num_steps

DIMENSION = 4096
"""Numbers of a state whose times need no shift."""


@dataclass(frozen=True, kw_only=True)
class FlowTimes(PickedLevels):
    """Even steps in a path's time from noise to data, or shifted towards the noise.

    Choose it with the solvers ``flow`` and ``flow-sde`` for SiT and models trained like it. A
    ``shift`` above 1 spends more steps on much noise, as states of many numbers want: the more
    there are, the more noise it takes to hide them.

    Attributes:
        num_steps: solver steps, >= 1. The official code counts time points, one more for its ODE.
        path: ``linear``, ``gvp`` or ``vp``; the model's own.
        last_step: size of the last step in time, between 0 and 1, before the shift; None makes it
            as long as the others.
        sigma_max: where to start; None is where the model does.
        shift: with u the time that is left (1 at noise, 0 at data), u becomes
            ``shift u / (1 + (shift - 1) u)``; > 0. On the linear path the noise levels are
            multiplied by it. None is 1, or what ``dimension`` makes it.
        dimension: the numbers C H W of a state, of which the shift is ``sqrt(dimension / 4096)``.

    Source: Ma et al. (arXiv:2401.08740), as in the official code; Esser et al. (arXiv:2403.03206),
    Eq. 23, for the shift; Zheng et al. (RAE, arXiv:2510.11690), for its dependence on the
    dimension. It is applied once to every time, also to the last, as published; diffusers'
    FlowMatchEulerDiscreteScheduler shifts the last twice.
    """

    suits: ClassVar[str] = "any; flow matching (SiT)"

    num_steps: int = 50
    path: str = "linear"
    last_step: float | None = None
    sigma_max: float | None = None
    shift: float | None = None
    dimension: int | None = None

    def __post_init__(self) -> None:
        path_of(self.path)
        check_num_steps(self.num_steps)
        if self.last_step is not None and not 0 < self.last_step < 1:
            raise ConfigError(f"the flow schedule needs 0 < last_step < 1, got {self.last_step}")
        if self.sigma_max is not None and not self.sigma_max > 0:
            raise ConfigError(f"the flow schedule needs sigma_max > 0, got {self.sigma_max}")
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise ConfigError(f"the flow schedule needs shift > 0 (1 is none), got {self.shift}")
        if self.dimension is not None and self.dimension < 1:
            raise ConfigError(
                "the dimension of the flow schedule is how many numbers a state has, C H W; got "
                f"{self.dimension}"
            )
        if self.shift is not None and self.dimension is not None:
            raise ConfigError(
                "the flow schedule takes a shift or the dimension that makes it, not both; leave "
                "out one of them"
            )

    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """``num_steps`` decreasing noise levels and a final 0, on the CPU, not yet rounded.

        Raises:
            ConfigError: the last step is as long as the whole path.
        """
        path = path_of(self.path)
        high = min(noise_levels.sigma_max, self.sigma_max or LARGEST)
        first, last = path.t(
            torch.tensor([high, noise_levels.sigma_min], dtype=torch.float64)
        ).tolist()
        if self.last_step is not None:
            last = min(last, 1 - self.last_step)
        if not first < last:
            raise ConfigError(
                f"the flow schedule starts at time {first:.3g}, which leaves nothing before its"
                f" last step from {last:.3g} to 1; choose a smaller last_step or a larger sigma_max"
            )
        if last == 1:
            times = torch.linspace(first, 1, self.num_steps + 1, dtype=torch.float64)[:-1]
        else:
            times = torch.linspace(first, last, self.num_steps, dtype=torch.float64)
        sigmas = path.sigma(self._shifted(times))
        return torch.cat([sigmas, sigmas.new_zeros(1)])

    def _shifted(self, times: Float64[Tensor, " N"]) -> Float64[Tensor, " N"]:
        """Times from noise (0) to data (1) under the shift."""
        shift = self.shift
        if self.dimension is not None:
            shift = math.sqrt(self.dimension / DIMENSION)
        if shift is None or shift == 1:
            return times
        # u' = shift u / (1 + (shift - 1) u) for u = 1 - t, solved for t' without a difference.
        return times / (times + shift * (1 - times))
