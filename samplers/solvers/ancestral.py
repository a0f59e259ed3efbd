"""The base of ancestral solvers: a step that goes too far down, then fresh noise back up."""

import math
from dataclasses import dataclass

from typing_extensions import override

from genlab.diffusion.denoiser import State, StepInfo
from genlab.errors import ConfigError
from genlab.samplers.base import Grid, Solver
from genlab.samplers.solvers.draws import Draws, check_noise


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """How much of a step's noise is fresh.

    Attributes:
        eta: >= 0; 1 is all of DDPM's noise, 0 is deterministic and draws nothing, more than 1 goes
            further down, at most to the clean image.
        s_noise: standard deviation of the fresh noise, in units of what keeps the noise level.
        noise: ``independent`` draws of the sample's stream, or those of a ``brownian`` path, which
            does not depend on the number of steps.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    noise: str = "independent"

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ConfigError(f"an ancestral solver needs eta >= 0, got {self.eta}")
        if not 0 <= self.s_noise < math.inf:
            raise ConfigError(f"an ancestral solver needs s_noise >= 0, got {self.s_noise}")
        check_noise("ancestral", self.noise)

    @override
    def draws(self) -> int:
        return int(self.eta > 0)

    def begin(self, grid: Grid) -> Draws:
        """The noise of the run."""
        return Draws(self.noise, grid)

    def split(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """(level that the step goes down to, standard deviation of what is added there).

        ``down^2 + up^2 = sigma_next^2``, with ``up = eta`` times the posterior's deviation, at most
        ``sigma_next``.
        """
        posterior = (sigma_next / sigma) * math.sqrt(max(sigma**2 - sigma_next**2, 0.0))
        up = min(sigma_next, self.eta * posterior)
        return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up

    def add(self, x: State, up: float, step: StepInfo, draws: Draws) -> State:
        """``x`` with its fresh noise; a step to 0 and a deterministic one draw nothing."""
        if self.eta == 0 or step.sigma_next == 0:
            return x
        return x + up * self.s_noise * draws.between(x, step, step.level, step.sigma_next)
