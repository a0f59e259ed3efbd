"""Inversion: from images back to the noise that a deterministic solver would draw them from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import (
    ConditionedDenoiser,
    Denoiser,
    Prediction,
    Sigma,
    State,
    StepInfo,
)
from genlab.errors import ConfigError, nearest
from genlab.samplers.base import Grid, Solver, SolverStep, StepResult
from genlab.samplers.editing.options import ASKS
from genlab.samplers.loop import solve
from genlab.samplers.solvers.ddim import DDIM
from genlab.samplers.solvers.euler import Euler


def invert(
    solver: Solver,
    denoiser: Denoiser,
    x: State,
    sigmas: Float64[Tensor, " levels"],
    condition: Condition,
) -> Iterator[SolverStep]:
    """Follow a deterministic solver from little noise to much.

    Args:
        solver: one that draws no noise and starts from what it is given.
        denoiser: the model, guided or not.
        x: the state at the first level, (B, C, H, W), in the dtype that it is kept in.
        sigmas: increasing noise levels, on the CPU.
        condition: of the whole batch.

    Returns:
        A step to each level but the first.

    Raises:
        ConfigError: the solver or a guidance draws noise.
    """
    ends = float(sigmas[0]), float(sigmas[-1])
    grid = Grid(sigmas=sigmas, sigma_range=ends, noise_levels=denoiser.noise_levels)
    return solve(solver, denoiser, x, grid, condition=condition, noise=NoDraws(), restarts=False)


def invert_images(
    solver: Solver,
    denoiser: Denoiser,
    images: Float[Tensor, "B C H W"],
    sigmas: Float64[Tensor, " levels"],
    condition: Condition,
    *,
    ask: str = "start",
) -> Iterator[SolverStep]:
    """Find the state from which a solver comes back to given images, nearly.

    The levels of sampling are taken from their end. The last step of sampling, from the smallest
    noise level s to 0, is ``x -> D(x; s)``; it is undone by one fixed-point iteration from the
    images themselves, ``x = 2 images - D(images; s)``, which is an Euler step that asks at the
    level it arrives at. From there the solver itself steps up.

    Args:
        solver: see `check_invertible`.
        denoiser: the model, guided or not.
        images: in [-1, 1], (B, C, H, W), in the dtype that the state is kept in.
        sigmas: the noise levels of sampling: decreasing, with a final 0.
        condition: of the whole batch.
        ask: ``start``: the solver asks where each step starts, at the level that it leaves, as in
            the official code of ADM; ``end``: at the level that it arrives at, as diffusers'
            DDIMInverseScheduler does (`euler` and `ddim` only).

    Returns:
        A step to each level; the last one holds the state at ``sigmas[0]``. The error of the round
        trip falls with the number of levels, at the solver's order.

    Raises:
        ConfigError: the solver cannot be inverted, or levels rise.
    """
    if ask not in ASKS:
        raise ConfigError(f"inversion cannot ask at the {ask!r} of a step; {nearest(ask, ASKS)}")
    if not (sigmas.diff() < 0).all():
        raise ConfigError(
            "inversion needs noise levels that fall in every step, and this schedule repeats or "
            "raises them; take one without restarts, or fewer steps"
        )
    check_invertible(solver, denoiser, sigmas)
    upwards = ArrivingDDIM.like(solver) if ask == "end" else _FromImages(solver)
    return invert(upwards, denoiser, images, sigmas.flip(0), condition)


def check_invertible(
    solver: Solver, denoiser: Denoiser, sigmas: Float64[Tensor, " levels"]
) -> None:
    """Refuse a solver that draws noise: there is no way back from what it makes.

    Args:
        solver: takes one step of a model that estimates zeros.
        denoiser: whose noise levels these are.
        sigmas: the noise levels of sampling: decreasing, with a final 0.

    Raises:
        ConfigError: it draws.
    """
    if len(sigmas) < 3:
        return  # the only step leads to the estimate
    ends = float(sigmas[-2]), float(sigmas[0])
    grid = Grid(sigmas=sigmas, sigma_range=ends, noise_levels=denoiser.noise_levels)
    level, sigma_next = sigmas[:2].tolist()
    step = StepInfo(
        index=0,
        num_steps=len(sigmas) - 1,
        level=level,
        sigma=level,
        sigma_next=sigma_next,
        noise=NoDraws(),
    )
    zeros = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    model = ConditionedDenoiser(_Zeros(denoiser), Condition())
    solver.step(model, zeros, step, solver.begin(grid))


def ddim_latents(
    denoiser: Denoiser,
    images: Float[Tensor, "B C H W"],
    sigmas: Float64[Tensor, " levels"],
    condition: Condition,
    *,
    clip: bool = False,
) -> Float[Tensor, "B C H W"]:
    """Find the latents from which deterministic `DDIM` comes back to given images, nearly.

    Args:
        denoiser: the model, guided or not.
        images: in [-1, 1], (B, C, H, W), in the dtype that the state is kept in.
        sigmas: the noise levels of sampling: decreasing, with a final 0.
        condition: of the whole batch.
        clip: as the sampler's.

    Returns:
        Standard normal latents for `genlab.samplers.loop.sample_steps`. The error falls with the
        number of levels, since each step takes the slope of where it starts.

    Source: Dhariwal and Nichol (arXiv:2105.05233), Appendix F; as in the official code, the images
    are taken for the scaled ones of the least noise level.
    """
    levels = sigmas[:-1].flip(0)
    start = images * math.hypot(1.0, float(levels[0]))
    *_, last = invert(DDIM(clip=clip), denoiser, start, levels, condition)
    # One more step would lead to pure noise, which is the noise in the state itself.
    largest = float(levels[-1])
    return (last.x - ConditionedDenoiser(denoiser, condition)(last.x, largest, clip=clip)) / largest


@dataclass(frozen=True, kw_only=True)
class ArrivingDDIM(Solver):
    """DDIM upwards with the noise that the model finds at the level where the step ends.

    It starts from images without noise. The network sees the state of the step's start, in the
    scaled frame, under the noise level of its end.

    Attributes:
        clip: whether the estimate is clipped to [-1, 1] in every step; the noise stays as
            predicted.

    Source: diffusers' DDIMInverseScheduler; Song et al. (arXiv:2010.02502), Eq. 12 with
    ``eta = 0``.
    """

    order: ClassVar[int] = 1

    clip: bool = False

    @classmethod
    def like(cls, solver: Solver) -> "ArrivingDDIM":
        """The one that undoes a solver.

        Raises:
            ConfigError: it is neither Euler's method nor DDIM, or clips in another way.
        """
        if not isinstance(solver, DDIM | Euler):
            raise ConfigError(
                "only the euler and ddim solvers can be inverted by asking at the end of a step; "
                "set ask to start, or take one of them"
            )
        if isinstance(solver, DDIM) and solver.clip and not solver.keep_noise:
            raise ConfigError(
                "asking at the end of a step keeps the predicted noise where it clips; set "
                "keep_noise: true, clip: false, or ask: start"
            )
        return cls(clip=isinstance(solver, DDIM) and solver.clip)

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        seen = x * (math.hypot(1.0, step.sigma_next) / math.hypot(1.0, step.level))
        eps = (seen - denoiser(seen, step.sigma_next)) / step.sigma_next
        x0 = x - step.level * eps
        if self.clip:
            x0 = x0.clamp(-1, 1)
        return StepResult(x=x0 + step.sigma_next * eps, x0=x0)


class _FromImages(Solver):
    """A solver upwards whose first step begins with images without noise."""

    order = 0

    def __init__(self, inner: Solver) -> None:
        self.inner = inner

    def begin(self, grid: Grid) -> Any:
        if len(grid.sigmas) < 3:
            return None
        return self.inner.begin(replace(grid, sigmas=grid.sigmas[1:]))

    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        if step.level > 0:
            return self.inner.step(denoiser, x, step, memory)
        x0 = denoiser(x, step.sigma_next)
        return StepResult(x=2 * x - x0, x0=x0, memory=memory)


class _Zeros(Denoiser):
    """Estimates zeros, with as many zeros for a variance."""

    def __init__(self, model: Denoiser) -> None:
        self.noise_levels = model.noise_levels
        self.num_classes = 0
        self.has_null_class = False
        self.evaluations = 0

    def __call__(self, x: State, sigma: Sigma, condition: Condition) -> State:
        return torch.zeros_like(x)

    def predict(self, x: State, sigma: Sigma, condition: Condition) -> Prediction:
        return Prediction(x0=torch.zeros_like(x), variance=torch.zeros_like(x))


class NoDraws:
    """The noise stream of a run that must draw nothing."""

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Refuse to draw."""
        raise self._refusal()

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Refuse to draw."""
        raise self._refusal()

    def fork(self, key: str) -> "NoDraws":
        """A fork, which draws nothing either."""
        return self

    @staticmethod
    def _refusal() -> ConfigError:
        return ConfigError(
            "inversion needs a deterministic sampler, and this solver or a guidance draws noise; "
            "set its S_churn or eta to 0, or take heun, euler, ddim or dpmpp"
        )
