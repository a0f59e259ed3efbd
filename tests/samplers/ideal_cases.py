"""A small mixture with its exact denoiser, and a run over it in one call."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from watching import Watching

from genlab.diffusion import discrete as preconditioning
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, StepInfo
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.samplers.base import SCHEDULES, SOLVERS, Hook, SolverStep
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.base import NoiseSchedule
from genlab.samplers.solvers.churn import Churn

FREE_SOLVERS = [name for name in SOLVERS if name != "diffusers"]
"""Solvers that take any schedule; that one has levels of its own."""

CHURNING = [name for name in SOLVERS if issubclass(SOLVERS[name], Churn)]
RANGED = [name for name in SCHEDULES if issubclass(SCHEDULES[name], NoiseSchedule)]

DDPM_40 = preconditioning.Discrete(T=40)
SHAPE = (2, 2, 2)
SEEDS = (0, 1, 2, 3)


def mixture() -> GaussianMixtureDenoiser:
    """Three classes of tiny images; wide enough for the ODE to be smooth."""
    numbers = torch.Generator().manual_seed(7)
    means = torch.randn(3, *SHAPE, generator=numbers, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return GaussianMixtureDenoiser(weights, means, torch.tensor([0.5, 0.7, 0.9]).double())


def run(
    config: Mapping[str, Any],
    denoiser: Denoiser | None = None,
    seeds: Sequence[int] = SEEDS,
    condition: Condition | None = None,
    hooks: Sequence[Hook] = (),
) -> list[SolverStep]:
    """Every step of a run."""
    steps = sample_steps(
        Sampler.from_config(config),
        denoiser or mixture(),
        noise=NoiseStream(seeds),
        condition=condition or Condition(),
        image_shape=SHAPE,
        device="cpu",
        hooks=hooks,
    )
    return list(steps)


class Listener(Watching):
    """A denoiser that notes what it is asked and told, and predicts no variance."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.batches: list[int] = []
        self.sigmas: list[float] = []
        self.steps: list[StepInfo] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.batches.append(len(x))
        self.sigmas.append(float(sigma.max()))  # each sample may have its own
        return self.inner(x, sigma, condition)

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        return Prediction(x0=self(x, sigma, condition))

    def begin_step(self, step: StepInfo) -> None:
        self.steps.append(step)
        super().begin_step(step)


class Timesteps(Listener):
    """The same model as one with timesteps: those of a DDPM of 40 steps.

    Where it interpolates, it may be asked for any noise level in their range.
    """

    def __init__(self, inner: Denoiser, *, interpolate: bool = False) -> None:
        super().__init__(inner)
        self.noise_levels = _Interpolated() if interpolate else _Timesteps()


class _Timesteps(NoiseLevels):
    levels = DDPM_40.levels
    sigma_min, sigma_max = DDPM_40.sigma_min, DDPM_40.sigma_max
    exact = True

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return DDPM_40.round_sigma(sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return DDPM_40.time(sigma)


class _Interpolated(_Timesteps):
    continuous = True

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma.clamp(self.sigma_min, self.sigma_max)


class Discrete(Listener):
    """The same model as one that knows multiples of 0.05 only, up to 40."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.noise_levels = _Twentieths()


class _Twentieths(NoiseLevels):
    sigma_min, sigma_max = 0.05, 40.0
    exact = True

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return (sigma * 20).round() / 20

    def time(self, sigma: Tensor) -> Tensor:
        return sigma / 40
