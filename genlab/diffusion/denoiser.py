"""The denoiser contract: to every sampler a diffusion model is D(x; sigma, condition) -> x0.

The frame is EDM's unscaled one: ``x = x0 + sigma * n`` with unit normal ``n``, for every
parameterisation. A guidance wraps a denoiser and is itself a denoiser, so samplers never ask which
they have.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.noise import Noise
from genlab.diffusion.noise_levels import NoiseLevels

State = Float[Tensor, "B C H W"]
Sigma = Float[Tensor, ""] | Float[Tensor, " B"]


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """The current step of a run, announced to the denoiser before it is taken.

    Attributes:
        index: number of this step, 0 <= index < num_steps.
        num_steps: steps in this run.
        level: noise level of the state when the step begins, as the schedule has it.
        sigma: noise level that the solver starts from: ``level``, or a little above it after churn.
        sigma_next: noise level that the step ends at; 0 on the last one.
        noise: the run's noise stream. What is drawn from it moves what the solver draws later;
            guidance draws from a fork of it.
        restarts: whether the noise rises again in this run. Then levels repeat, and the number of
            a step does not say how much noise is left.
    """

    index: int
    num_steps: int
    level: float
    sigma: float
    sigma_next: float
    noise: Noise
    restarts: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """All that a model predicts at a noise level: what ancestral sampling needs beyond x0.

    Attributes:
        x0: the denoised estimate, (B, C, H, W), before a classifier's gradient.
        variance: the network's raw variance channels, (B, C, H, W), where it predicts them.
        score: what classifier guidance adds, (B, C, H, W): ``scale * grad_x log p(class | x)`` in
            the unscaled frame. Kept apart because DDPM and DDIM clip x0 before they add it.
    """

    x0: Float[Tensor, "B C H W"]
    variance: Float[Tensor, "B C H W"] | None = None
    score: Float[Tensor, "B C H W"] | None = None

    def estimate(
        self, sigma: Float[Tensor, ""] | Float[Tensor, " B"], clip: bool = False
    ) -> Float[Tensor, "B C H W"]:
        """The estimate with all corrections included: ``x0 + sigma^2 score``.

        Args:
            sigma: the noise level of the prediction.
            clip: whether x0 is brought into [-1, 1] before the score is added.
        """
        x0 = self.x0.clamp(-1, 1) if clip else self.x0
        if self.score is None:
            return x0
        return x0 + rows(sigma.to(x0.dtype), x0) ** 2 * self.score

    def split(self, parts: int) -> list["Prediction"]:
        """Split into the predictions of equal parts of the batch."""
        variances, scores = (
            [None] * parts if whole is None else whole.chunk(parts)
            for whole in (self.variance, self.score)
        )
        return [
            Prediction(x0=x0, variance=variance, score=score)
            for x0, variance, score in zip(self.x0.chunk(parts), variances, scores, strict=True)
        ]

    def away_from(self, other: "Prediction", scale: float) -> "Prediction":
        """``other + scale (self - other)``, with this one's variance."""
        return self.with_estimate(torch.lerp(other.x0, self.x0, scale), other, scale)

    def with_estimate(self, x0: State, other: "Prediction", scale: float) -> "Prediction":
        """A prediction with another estimate, otherwise as `away_from` gives it."""
        score = self.score
        if score is not None and other.score is not None:
            score = torch.lerp(other.score, score, scale)
        return Prediction(x0=x0, variance=self.variance, score=score)


class Denoiser(ABC):
    """D(x; sigma, condition) -> x0.

    Attributes:
        noise_levels: what the model knows about noise levels.
        num_classes: number of classes; 0 for an unconditional model.
        has_null_class: whether the model was trained to denoise without a class (label dropout), as
            classifier-free guidance needs.
        evaluations: network evaluations so far, counted in rows: a batch of B through the network
            adds B.
        changes_by_step: whether the same question may have another answer in another step of a run,
            so that a solver must not carry answers over.
    """

    noise_levels: NoiseLevels
    num_classes: int
    has_null_class: bool
    evaluations: int
    changes_by_step: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: State, sigma: Sigma, condition: Condition) -> Float[Tensor, "B C H W"]:
        """Denoise.

        Args:
            x: noisy images in the unscaled frame, any float dtype; the network computes in its own.
            sigma: noise level for the whole batch (0-d) or one for each sample (B,), in float64
                where the sampler is.
            condition: labels and whatever acts on them.

        Returns:
            The denoised estimate x0, (B, C, H, W), in the dtype of ``x``.
        """

    def predict(self, x: State, sigma: Sigma, condition: Condition) -> Prediction:
        """Denoise and give the variance, too, where the model predicts one; see ``__call__``."""
        return Prediction(x0=self(x, sigma, condition))

    def predict_each(
        self, x: State, sigma: Sigma, conditions: Sequence[Condition]
    ) -> list[Prediction]:
        """Predict the same images under several conditions, which run as one batch.

        Args:
            x: see ``__call__``.
            sigma: see ``__call__``.
            conditions: of the whole batch each, all with labels or all without.
        """
        if len(conditions) == 1:
            return [self.predict(x, sigma, conditions[0])]
        times = len(conditions)
        levels = sigma if sigma.ndim == 0 else torch.cat([sigma] * times)
        whole = self.predict(torch.cat([x] * times), levels, Condition.cat(conditions))
        return whole.split(times)

    @property
    def sigma_min(self) -> float:
        """Smallest noise level that the model knows (>= 0)."""
        return self.noise_levels.sigma_min

    @property
    def sigma_max(self) -> float:
        """Largest noise level that the model knows (may be ``inf``)."""
        return self.noise_levels.sigma_max

    def round_sigma(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Nearest noise levels that the model knows; see `NoiseLevels.round_sigma`."""
        return self.noise_levels.round_sigma(sigma)

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The model's own normalised time in [0, 1]: 1 = pure noise, 0 = clean data."""
        return self.noise_levels.time(sigma)

    def begin_step(self, step: StepInfo) -> None:  # noqa: B027  # nothing to do unless overridden
        """Called before each step of a run; guidance that acts by step overrides this."""


@dataclass(frozen=True)
class ConditionedDenoiser:
    """A denoiser with the condition of its batch, called with a noise level that the batch shares.

    What solvers are given: noise levels are Python numbers and stay on the CPU, so that no step
    waits for a device.
    """

    denoiser: Denoiser
    condition: Condition

    @property
    def noise_levels(self) -> NoiseLevels:
        """What the model knows about noise levels."""
        return self.denoiser.noise_levels

    def __call__(self, x: State, sigma: float, *, clip: bool = False) -> Float[Tensor, "B C H W"]:
        """Denoise.

        Args:
            x: noisy images in the unscaled frame.
            sigma: their noise level.
            clip: whether x0 is brought into [-1, 1] before a classifier's score is added.
        """
        level = torch.tensor(sigma, dtype=torch.float64)
        if clip:
            return self.denoiser.predict(x, level, self.condition).estimate(level, clip=True)
        return self.denoiser(x, level, self.condition)

    def predict(self, x: State, sigma: float) -> Prediction:
        """Denoise and give the full prediction; see `Denoiser.predict`."""
        return self.denoiser.predict(x, torch.tensor(sigma, dtype=torch.float64), self.condition)


def rows(coefficient: Float[Tensor, "*s"], x: Float[Tensor, "B C H W"]) -> Tensor:
    """A coefficient ready to multiply images by.

    One that the batch shares stays 0-d and where it is: on the CPU it costs no copy to the device.
    One for each sample becomes a column (B, 1, 1, 1) on the images' device.
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x.device, non_blocking=True).reshape(-1, 1, 1, 1)
