"""The noise levels of diffusers' schedulers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.noise_levels import NoiseLevels
from genlab.samplers.diffusers_schedulers import Run, check_settings
from genlab.samplers.schedules.base import PickedLevels, check_num_steps


@dataclass(frozen=True, kw_only=True)
class DiffusersLevels(PickedLevels):
    """The noise levels that a scheduler of diffusers chooses.

    Choose it with the solver ``diffusers`` of the same scheduler and settings, which needs them; a
    solver of ours takes it, too.

    Attributes:
        num_steps: diffusers' ``num_inference_steps``, >= 1.
        scheduler: the name of its class, ``PNDMScheduler`` for instance.
        config: its settings; what is left out takes diffusers' defaults. The betas and the kind of
            prediction are the model's.

    Source: diffusers' ``set_timesteps``.
    """

    num_steps: int = 50
    scheduler: str = "DPMSolverMultistepScheduler"
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
        check_settings(self.scheduler, self.config, {})

    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """The noise levels, decreasing, and a final 0.

        Raises:
            ConfigError: see `genlab.samplers.diffusers_schedulers.Run`.
        """
        run = Run(self.scheduler, self.config, self.num_steps, noise_levels)
        return torch.tensor([*run.levels, 0.0], dtype=torch.float64)


def diffusers_sampler(
    scheduler: str,
    config: Mapping[str, Any] | None = None,
    *,
    num_steps: int = 50,
    step: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The sampler config that runs a scheduler of diffusers: its solver and its schedule.

    Args:
        scheduler: the name of its class.
        config: its settings.
        num_steps: diffusers' ``num_inference_steps``.
        step: options of its step, for instance ``eta`` of a DDIMScheduler.

    >>> diffusers_sampler("PNDMScheduler", num_steps=7)["schedule"]
    {'name': 'diffusers', 'num_steps': 7, 'scheduler': 'PNDMScheduler'}
    """
    common: dict[str, Any] = {"scheduler": scheduler}
    if config:
        common["config"] = dict(config)
    return {
        "solver": {"name": "diffusers", **common, **({"step_options": dict(step)} if step else {})},
        "schedule": {"name": "diffusers", "num_steps": num_steps, **common},
    }
