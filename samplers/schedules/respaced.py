"""The schedule of discrete models: some of the timesteps that they were trained on."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.discrete import respaced_timesteps
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError
from genlab.samplers.schedules.base import PickedLevels, check_num_steps


@dataclass(frozen=True, kw_only=True)
class Respaced(PickedLevels):
    """Some of a discrete model's own noise levels, spaced as guided-diffusion and DiT do.

    Choose it with `DDPM` and `DDIM` for ADM, DiT and other models of discrete timesteps.

    Attributes:
        steps: how many, spread evenly with both ends (``250``); ``"10,15,20"`` so many in each of
            as many equal sections, from little noise to much; ``"ddim25"`` an integer stride from
            timestep 0; ``""`` every timestep.
        num_steps: how many, instead of the number in ``steps``; None keeps that.

    Source: guided-diffusion's ``space_timesteps`` (Dhariwal and Nichol, arXiv:2105.05233).
    """

    suits: ClassVar[str] = "discrete timesteps (ADM, iDDPM, DiT)"

    steps: int | str = 250
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int | str) or isinstance(self.steps, bool):
            raise ConfigError(
                f"steps must be a number, sections such as '10,15,20', or 'ddim25', got"
                f" {self.steps!r}"
            )
        if self.num_steps is not None:
            check_num_steps(self.num_steps)

    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """The noise levels, decreasing, and a final 0.

        Raises:
            ConfigError: the model has no discrete noise levels, or fewer than are asked for.
        """
        if noise_levels.levels is None:
            raise ConfigError(
                "the respaced schedule picks among the timesteps of a discrete model, and this one"
                " knows every noise level; take karras"
            )
        levels = noise_levels.levels[respaced_timesteps(len(noise_levels.levels), self._wanted())]
        return torch.cat([levels.flip(0), levels.new_zeros(1)])

    def _wanted(self) -> int | str:
        if self.num_steps is None:
            return self.steps
        strided = isinstance(self.steps, str) and self.steps.startswith("ddim")
        return f"ddim{self.num_steps}" if strided else self.num_steps
