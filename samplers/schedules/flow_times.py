"""The schedule of flow matching: even steps in the time of a path."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.flow import LARGEST, path_of
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError
from genlab.samplers.schedules.base import PickedLevels


@dataclass(frozen=True, kw_only=True)
class FlowTimes(PickedLevels):
    """Even steps in a path's time from noise to data.

    Choose it with the solvers ``flow`` and ``flow-sde`` for SiT and models trained like it.

    Attributes:
        num_steps: solver steps, >= 1. The official code counts time points, one more for its ODE.
        path: ``linear``, ``gvp`` or ``vp``; the model's own.
        last_step: size of the last step in time, between 0 and 1; None makes it as long as the
            others.
        sigma_max: where to start; None is where the model does.

    Source: Ma et al. (arXiv:2401.08740), as in the official code.
    """

    suits: ClassVar[str] = "any; flow matching (SiT)"

    num_steps: int = 50
    path: str = "linear"
    last_step: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        path_of(self.path)
        if self.num_steps < 1:
            raise ConfigError(f"a noise schedule needs num_steps >= 1, got {self.num_steps}")
        if self.last_step is not None and not 0 < self.last_step < 1:
            raise ConfigError(f"the flow schedule needs 0 < last_step < 1, got {self.last_step}")
        if self.sigma_max is not None and not self.sigma_max > 0:
            raise ConfigError(f"the flow schedule needs sigma_max > 0, got {self.sigma_max}")

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
        sigmas = path.sigma(times)
        return torch.cat([sigmas, sigmas.new_zeros(1)])
