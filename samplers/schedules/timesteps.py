"""The schedule of diffusers' schedulers: timesteps of a discrete model, spaced in their ways."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.discrete import between
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError, nearest
from genlab.samplers.schedules.base import PickedLevels, check_num_steps

SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True, kw_only=True)
class Timesteps(PickedLevels):
    """Some of a discrete model's noise levels, spaced as diffusers does.

    Choose it to repeat what a pipeline of diffusers draws; `Respaced` is the one of ADM and DiT.
    Every step ends where the next begins; there DDIM and DDPM end it T // num_steps timesteps
    lower, which is another place with ``linspace``, and with ``trailing`` where T is no multiple of
    num_steps.

    Attributes:
        num_steps: solver steps, >= 1.
        spacing: ``leading`` (multiples of T // num_steps from 0), ``trailing`` (down from T - 1 in
            steps of T / num_steps) or ``linspace`` (from T - 1 to 0, both included).
        offset: added to each timestep, >= 0; of ``leading`` only.
        open_end: whether the grid has one more timestep, at its low end, that is not visited, as
            multistep schedulers have it; not with ``trailing``.
        fractional: whether ``linspace`` keeps timesteps that are not whole; their noise levels lie
            on the line between their neighbours', and the model has to know them.
        in_log: whether that line is one of ln sigma, as in k-diffusion.

    Source: the tables of Lin et al. (arXiv:2305.08891), Sec. 3.2, and diffusers' schedulers.
    """

    suits: ClassVar[str] = "discrete timesteps (diffusers' pipelines)"

    num_steps: int = 50
    spacing: str = "leading"
    offset: int = 0
    open_end: bool = False
    fractional: bool = False
    in_log: bool = False

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
        if self.offset < 0:
            raise ConfigError(
                f"the timesteps schedule needs offset >= 0, got {self.offset}: it is added to "
                "timesteps that begin at 0"
            )
        if self.spacing not in SPACINGS:
            raise ConfigError(
                f"there is no spacing {self.spacing!r}; {nearest(self.spacing, SPACINGS)}"
            )
        idle = {
            "offset": self.offset and self.spacing != "leading",
            "open_end": self.open_end and self.spacing == "trailing",
            "fractional": self.fractional and self.spacing != "linspace",
        }
        for option, without_effect in idle.items():
            if without_effect:
                raise ConfigError(
                    f"{option} has no effect with {self.spacing} timesteps; leave it out"
                )
        if self.in_log and not self.fractional:
            raise ConfigError("in_log has no effect without fractional; leave it out")

    def timesteps(self, T: int) -> Float64[Tensor, " N"]:
        """The timesteps of a model that has T of them, decreasing.

        Raises:
            ConfigError: it has too few.
        """
        points = self.num_steps + self.open_end
        if points > T or (points - 1) * (T // points) + self.offset >= T:
            raise ConfigError(
                f"the model has {T} timesteps, too few for num_steps {self.num_steps} with offset "
                f"{self.offset}; lower them"
            )
        if self.spacing == "trailing":
            # Halves are rounded to even numbers, as there.
            return (T - T / points * torch.arange(points, dtype=torch.float64)).round() - 1
        if self.spacing == "leading":
            grid = T // points * torch.arange(points, dtype=torch.float64) + self.offset
        else:
            # Multiplied in this order because ties are rounded: halves must fall as they do there.
            step = (T - 1) / max(points - 1, 1)
            grid = (step * torch.arange(points, dtype=torch.float64)).clamp(max=T - 1)
            grid = grid if self.fractional else grid.round()
        return grid.flip(0)[: self.num_steps]

    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """The noise levels, decreasing, and a final 0.

        Raises:
            ConfigError: the model has no discrete noise levels, or too few.
        """
        levels = noise_levels.levels
        if levels is None:
            raise ConfigError(
                "the timesteps schedule picks among the timesteps of a discrete model, and this one"
                " knows every noise level; take karras"
            )
        t = self.timesteps(len(levels))
        sigmas = between(levels, t, in_log=self.in_log)
        return torch.cat([sigmas, levels.new_zeros(1)])
