"""Churn: noise that may be added before each step."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.denoiser import State, StepInfo
from genlab.errors import ConfigError
from genlab.samplers.base import Solver


@dataclass(frozen=True, kw_only=True)
class Churn(Solver):
    """Stochasticity: raise the noise by a factor ``1 + gamma``, then step from there.

    Attributes:
        S_churn: how much noise in the whole run; 0 is deterministic and draws nothing. ``gamma =
            S_churn / num_steps``, at most sqrt(2) - 1.
        S_min: churn only at noise levels from here ...
        S_max: ... to here.
        S_noise: standard deviation of the added noise, that of restarts included; a little above 1
            makes up for a network that removes too much.

    Source: EDM (arXiv:2206.00364), Algorithm 2; its Table 5 has settings for each model.
    """

    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.S_churn < math.inf:
            raise ConfigError(f"S_churn must be >= 0 (0 = no added noise), got {self.S_churn}")
        if not 0 <= self.S_min <= self.S_max:
            raise ConfigError(
                f"churn needs 0 <= S_min <= S_max, got {self.S_min:g} and {self.S_max:g}"
            )
        if not 0 <= self.S_noise < math.inf:
            raise ConfigError(f"S_noise must be >= 0, got {self.S_noise}")

    @override
    def renoise(self, x: State, step: StepInfo) -> State:
        """The noise of a restart is multiplied by ``S_noise``, too."""
        std = self.S_noise * added_std(step.level, step.sigma_next)
        return x + std * fresh_noise(x, step)

    @override
    def raise_level(self, level: float, num_steps: int) -> float:
        gamma = min(self.S_churn / num_steps, math.sqrt(2) - 1)
        return level + gamma * level if self.S_min <= level <= self.S_max else level

    @override
    def draws(self) -> int:
        return int(self.S_churn > 0)

    def draw(self, x: State, step: StepInfo) -> State | None:
        """Noise for one step, of standard deviation ``S_noise``; None if the run is deterministic.

        It is drawn on every step of a stochastic run, also where gamma is 0, so that a sample's
        stream does not depend on ``S_min`` and ``S_max``; and in float64 whatever the state is in,
        so that it is the same on every device.
        """
        return None if self.S_churn == 0 else self.S_noise * fresh_noise(x, step)

    def raise_noise(self, x: State, step: StepInfo) -> State:
        """Bring ``x`` from ``step.level`` up to ``step.sigma``."""
        fresh = self.draw(x, step)
        return x if fresh is None else x + added_std(step.level, step.sigma) * fresh


def fresh_noise(x: State, step: StepInfo) -> State:
    """A unit normal draw of the run, in the dtype of the state, drawn in float64 for any."""
    return step.noise.randn(x.shape[1:], torch.float64).to(x.dtype)


def added_std(sigma: float, sigma_hat: float) -> float:
    """Standard deviation of the noise that lifts ``sigma`` to ``sigma_hat``."""
    return math.sqrt(max(sigma_hat**2 - sigma**2, 0.0))


def refuse_repeats(solver: str, sigmas: Float64[Tensor, " levels"]) -> None:
    """For solvers that divide by the distance between two noise levels.

    Repeats are not dropped for them: the number of steps would no longer be the one asked for.

    Raises:
        ConfigError: two successive noise levels are the same.
    """
    same = sigmas[1:] == sigmas[:-1]
    if same.any():
        raise ConfigError(
            f"{int(same.sum())} of the {len(same)} steps stay where they are (the first at sigma "
            f"{float(sigmas[1:][same][0]):.3g}), because the schedule has several noise levels for "
            f"one that the model knows, and {solver} cannot take such steps; lower num_steps, or "
            "take the respaced schedule or the heun solver"
        )
