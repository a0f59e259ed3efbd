"""Euler's ancestral sampler."""

from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.samplers.base import StepResult
from genlab.samplers.solvers.ancestral import Ancestral


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(Ancestral):
    """An Euler step that goes too far down, and fresh noise that leads back up.

    It is `DDIM` with as much of DDPM's noise that starts from noise of the first level itself.
    Choose it for variety with 20 to 50 steps; images do not settle as steps grow.

    Order 1. Costs one network evaluation a step.

    Source: Karras et al. (arXiv:2206.00364) name it a special case of theirs; as in k-diffusion and
    diffusers' EulerAncestralDiscreteScheduler.
    """

    order: ClassVar[int] = 1

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        x0 = denoiser(x, step.level)
        down, up = self.split(step.level, step.sigma_next)
        eps = (x - x0) / step.level
        x = x0 + down * eps
        return StepResult(x=self.add(x, up, step, memory), x0=x0, memory=memory)
