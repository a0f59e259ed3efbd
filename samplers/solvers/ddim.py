"""DDIM, with any amount of noise from none to that of DDPM."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.errors import ConfigError
from genlab.samplers.base import Solver, StepResult
from genlab.samplers.solvers.churn import fresh_noise


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    """A step towards x0 that keeps as much of the noise as the next level has.

    Choose it for ADM and DiT with the respaced schedule and 25 to 100 steps. With ``eta = 0`` and
    without clipping it is `Euler`, up to where the run starts.

    Order 1. Costs one network evaluation a step.

    Attributes:
        eta: 0 is deterministic and draws nothing, 1 is DDPM with the smaller fixed variance.
        clip: whether x0 is clipped to [-1, 1] in every step, and the noise found anew from it: for
            models of pixels, not of latents.
        keep_noise: whether the noise stays as predicted where x0 is clipped, as diffusers has it.

    Source: Song et al. (arXiv:2010.02502), Eq. 12 and 16, in the unscaled frame; classifier
    guidance as in Dhariwal and Nichol (arXiv:2105.05233), Algorithm 2.
    """

    order: ClassVar[int] = 1
    suits: ClassVar[str] = "any; ADM and DiT"

    eta: float = 0.0
    clip: bool = False
    keep_noise: bool = False

    def __post_init__(self) -> None:
        if self.keep_noise and not self.clip:
            raise ConfigError("keep_noise has no effect without clip; leave it out")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"DDIM needs 0 <= eta <= 1, got {self.eta}")

    @override
    def draws(self) -> int:
        return int(self.eta > 0)

    def start_std(self, sigma: float) -> float:
        """That of unit noise in the scaled frame, where such chains begin."""
        return math.hypot(1.0, sigma)

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        x0 = denoiser(x, step.level, clip=self.clip and not self.keep_noise)
        eps = (x - x0) / step.level
        if self.keep_noise:
            x0 = x0.clamp(-1, 1)
        up = 0.0
        if self.eta > 0:
            shrink = step.sigma_next / step.level
            up = self.eta * shrink * math.sqrt(step.level**2 - step.sigma_next**2)
        x = x0 + math.sqrt(max(step.sigma_next**2 - up**2, 0.0)) * eps
        if self.eta > 0:
            x = x + up * fresh_noise(x, step)
        return StepResult(x=x, x0=x0)
