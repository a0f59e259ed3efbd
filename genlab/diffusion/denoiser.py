"""The denoiser contract: to every sampler a diffusion model is D(x; sigma, condition) -> x0.

The frame is EDM's unscaled one: ``x = x0 + sigma * n`` with unit normal ``n``, for every
parameterisation. A guidance wraps a denoiser and is itself a denoiser, so samplers never ask which
they have.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.noise import Noise


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
    """

    sigma_min: float
    sigma_max: float
    num_classes: int
    has_null_class: bool
    evaluations: int

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
