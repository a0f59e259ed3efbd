"""What the solvers share: the steps of a run, and churn, the noise that may be added to them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, StepInfo
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError
from genlab.samplers.base import SolverStep


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One step of a run in noise levels, as Python numbers: the loop never waits for a device.

    Attributes:
        index: number of the step.
        num_steps: steps in the run.
        sigma: noise level of the state when the step begins.
        sigma_hat: where the solver starts from after churn, >= ``sigma``; the same without churn.
        sigma_next: where the step ends; 0 on the last one.
    """

    index: int
    num_steps: int
    sigma: float
    sigma_hat: float
    sigma_next: float

    def info(self, noise: Noise) -> StepInfo:
        """What the denoiser hears before the step."""
        return StepInfo(
            index=self.index,
            num_steps=self.num_steps,
            sigma=self.sigma_hat,
            sigma_next=self.sigma_next,
            noise=noise,
        )

    def done(self, x: Float[Tensor, "B C H W"], x0: Float[Tensor, "B C H W"]) -> SolverStep:
        """What the solver reports after the step."""
        return SolverStep(
            index=self.index,
            num_steps=self.num_steps,
            sigma=self.sigma_hat,
            sigma_next=self.sigma_next,
            x=x,
            x0=x0,
        )


def plan(levels: list[float], hats: list[float]) -> list[Leg]:
    """The steps over decreasing noise levels with a final 0, each from where churn brings it."""
    return [
        Leg(index=i, num_steps=len(hats), sigma=s, sigma_hat=hat, sigma_next=following)
        for i, (s, hat, following) in enumerate(zip(levels, hats, levels[1:], strict=False))
    ]


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


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Stochasticity: raise the noise by a factor ``1 + gamma``, then step from there.

    Attributes:
        S_churn: how much noise in the whole run; 0 is deterministic and draws nothing. ``gamma =
            S_churn / num_steps``, at most sqrt(2) - 1.
        S_min: churn only at noise levels from here ...
        S_max: ... to here.
        S_noise: standard deviation of the added noise; a little above 1 makes up for a network that
            removes too much.

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

    def legs(self, denoiser: Denoiser, sigmas: Float64[Tensor, " levels"]) -> list[Leg]:
        """Plan every step of a run over ``sigmas`` (decreasing, with a final 0)."""
        levels = sigmas.tolist()
        num_steps = len(levels) - 1
        gamma = min(self.S_churn / num_steps, math.sqrt(2) - 1)
        raised = [s + gamma * s if self.S_min <= s <= self.S_max else s for s in levels[:-1]]
        hats = denoiser.round_sigma(torch.tensor(raised, dtype=torch.float64)).tolist()
        return plan(levels, hats)

    def draw(self, x: Float[Tensor, "B C H W"], noise: Noise) -> Float[Tensor, "B C H W"] | None:
        """Noise for one step, of standard deviation ``S_noise``; None if the run is deterministic.

        It is drawn on every step of a stochastic run, also where gamma is 0, so that a sample's
        stream does not depend on ``S_min`` and ``S_max``; and in float64 whatever the state is in,
        so that it is the same on every device.
        """
        if self.S_churn == 0:
            return None
        return self.S_noise * noise.randn(x.shape[1:], torch.float64).to(x.dtype)

    def raise_noise(
        self, x: Float[Tensor, "B C H W"], leg: Leg, noise: Noise
    ) -> Float[Tensor, "B C H W"]:
        """Bring ``x`` from ``leg.sigma`` up to ``leg.sigma_hat``."""
        fresh = self.draw(x, noise)
        if fresh is None:
            return x
        return x + added_std(leg.sigma, leg.sigma_hat) * fresh


def added_std(sigma: float, sigma_hat: float) -> float:
    """Standard deviation of the noise that lifts ``sigma`` to ``sigma_hat``."""
    return math.sqrt(max(sigma_hat**2 - sigma**2, 0.0))


def denoise(
    denoiser: Denoiser, x: Float[Tensor, "B C H W"], sigma: float, condition: Condition
) -> Float[Tensor, "B C H W"]:
    """Call the denoiser with a noise level that the whole batch shares, left on the CPU."""
    return denoiser(x, torch.tensor(sigma, dtype=torch.float64), condition)


def announce(denoiser: Denoiser, legs: list[Leg], noise: Noise) -> Iterator[Leg]:
    """Go through the steps and tell the denoiser of each."""
    for leg in legs:
        denoiser.begin_step(leg.info(noise))
        yield leg
