"""The denoiser contract: to every sampler a diffusion model is D(x; sigma, condition) -> x0.

The frame is EDM's unscaled one: ``x = x0 + sigma * n`` with unit normal ``n``, for every
parameterisation. A guidance wraps a denoiser and is itself a denoiser, so samplers never ask which
they have.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.noise import Noise

FIXED_VARIANCES = ("fixed_small", "fixed_large")
VARIANCES = (*FIXED_VARIANCES, "learned_range", "learned")
"""Which variance a reverse step may have; `genlab.diffusion.discrete.Chain` says more."""


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """Where a run stands, told to the denoiser before each solver step.

    Attributes:
        index: number of this step, 0 <= index < num_steps.
        num_steps: steps in this run.
        sigma: noise level that the step starts from (after churn it starts a little above).
        sigma_next: noise level that the step ends at; 0 on the last one.
        noise: the run's noise stream, for guidance that draws (CADS); drawing from it changes
            nothing for other samples.
    """

    index: int
    num_steps: int
    sigma: float
    sigma_next: float
    noise: Noise


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """All that a model says at a noise level: what ancestral sampling needs beyond x0.

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
        """The estimate that everything is in: ``x0 + sigma^2 score``.

        Args:
            sigma: the noise level of the prediction.
            clip: whether x0 is brought into [-1, 1] before the score is added.
        """
        x0 = self.x0.clamp(-1, 1) if clip else self.x0
        if self.score is None:
            return x0
        return x0 + rows(sigma.to(x0.dtype), x0) ** 2 * self.score

    def halves(self) -> tuple["Prediction", "Prediction"]:
        """Those of the two halves of a batch."""
        x0 = self.x0.chunk(2)
        variance, score = (
            (None, None) if part is None else part.chunk(2) for part in (self.variance, self.score)
        )
        return (
            Prediction(x0=x0[0], variance=variance[0], score=score[0]),
            Prediction(x0=x0[1], variance=variance[1], score=score[1]),
        )

    def away_from(self, other: "Prediction", scale: float) -> "Prediction":
        """``other + scale (self - other)``, with this one's variance."""
        score = self.score
        if score is not None and other.score is not None:
            score = other.score + scale * (score - other.score)
        return Prediction(
            x0=other.x0 + scale * (self.x0 - other.x0), variance=self.variance, score=score
        )


class Denoiser(ABC):
    """D(x; sigma, condition) -> x0.

    Attributes:
        sigma_min: smallest noise level that the model knows (>= 0).
        sigma_max: largest one (may be ``inf``).
        num_classes: number of classes; 0 for an unconditional model.
        has_null_class: whether the model was trained to denoise without a class (label dropout), as
            classifier-free guidance needs.
        evaluations: network evaluations so far, counted in rows: a batch of B through the network
            adds B.
        levels: the noise levels of a discrete model, increasing, (T,); None for a continuous one.
        variance: which of `VARIANCES` a step of ancestral sampling has.
        exact: whether estimates have the precision of ``x``; otherwise that of float32.
    """

    sigma_min: float
    sigma_max: float
    num_classes: int
    has_null_class: bool
    evaluations: int
    levels: Float64[Tensor, " T"] | None = None
    variance: str = "fixed_small"
    exact: bool = False

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, " B"],
        condition: Condition,
    ) -> Float[Tensor, "B C H W"]:
        """Denoise.

        Args:
            x: noisy images in the unscaled frame, any float dtype; the network computes in its own.
            sigma: noise level for the whole batch (0-d) or one for each sample (B,), in float64
                where the sampler is.
            condition: labels and whatever acts on them.

        Returns:
            The denoised estimate x0, (B, C, H, W), in the dtype of ``x``.
        """

    def predict(
        self,
        x: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, ""] | Float[Tensor, " B"],
        condition: Condition,
    ) -> Prediction:
        """Denoise and tell the variance, too; arguments as for ``__call__``.

        A guidance that lives with models of learned variance overrides this.
        """
        return Prediction(x0=self(x, sigma, condition))

    @abstractmethod
    def round_sigma(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Nearest noise levels that the model knows, in dtype and shape of ``sigma``.

        The identity for continuous models.
        """

    @abstractmethod
    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The model's own normalised time in [0, 1]: 1 = pure noise, 0 = clean data."""

    def begin_step(self, step: StepInfo) -> None:  # noqa: B027  # deaf unless overridden
        """Hear where the run stands; guidance that acts by step (interval, CADS) overrides this."""


def rows(coefficient: Float[Tensor, "*s"], x: Float[Tensor, "B C H W"]) -> Tensor:
    """A coefficient ready to multiply images by.

    One that the batch shares stays 0-d and where it is: on the CPU it costs no copy to the device.
    One for each sample becomes a column (B, 1, 1, 1) on the images' device.
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x.device, non_blocking=True).reshape(-1, 1, 1, 1)
