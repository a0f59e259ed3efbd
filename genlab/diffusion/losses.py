"""Denoising losses: their contract, and those of EDM's Table 1, noise levels and weights.

The random numbers are drawn first (`draw`) and handed in (`__call__`), so that a training run
resumes exactly and a test repeats another implementation's draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.preconditioning import vp_sigma
from genlab.errors import ConfigError
from genlab.registry import Registry


@dataclass(frozen=True, kw_only=True)
class LossDraws:
    """The random numbers of one batch, in the order in which they are drawn.

    Attributes:
        level: selects each sample's noise level, (B,): standard normal or uniform in [0, 1), as the
            loss wants it.
        noise: standard normal noise, (B, C, H, W), not yet multiplied by sigma.
    """

    level: Float[Tensor, " B"]
    noise: Float[Tensor, "B C H W"]


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """A loss before any reduction.

    Attributes:
        loss: weighted squared error of each element, (B, C, H, W). EDM's training loop divides the
            sum over all elements by the batch size.
        sigma: each sample's noise level, (B,); the loss by noise level is what training plots show.
        parts: what the loss is made of: name -> mean over each sample's elements, (B,).
    """

    loss: Float[Tensor, "B C H W"]
    sigma: Float[Tensor, " B"]
    parts: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)


class DenoisingLoss(ABC):
    """A denoising loss. Subclasses are frozen dataclasses."""

    normal_levels: ClassVar[bool] = False
    """Whether the level is drawn from a standard normal (else uniformly in [0, 1))."""

    def draw(
        self, images: Float[Tensor, "B C H W"], generator: torch.Generator | None = None
    ) -> LossDraws:
        """Draw a batch's random numbers in float32: the levels first, then the noise.

        Args:
            images: only their shape and device matter.
            generator: where the numbers come from; they are drawn on its device and moved to that
                of the images.
        """
        device = images.device if generator is None else generator.device
        pick = torch.randn if self.normal_levels else torch.rand
        level = pick(len(images), generator=generator, device=device)
        noise = torch.randn(images.shape, generator=generator, device=device)
        return LossDraws(
            level=level.to(images.device, non_blocking=True),
            noise=noise.to(images.device, non_blocking=True),
        )

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        images: Float[Tensor, "B C H W"],
        condition: Condition,
        draws: LossDraws,
    ) -> LossTerms:
        """The loss of one batch.

        Args:
            denoiser: the model in training.
            images: clean and already augmented, in [-1, 1].
            condition: their labels, and the augmentation's own where the network takes them.
            draws: what `draw` returned.
        """


class WeightedLoss(DenoisingLoss):
    """``w(sigma) |D(y + sigma n; sigma) - y|^2``."""

    @abstractmethod
    def sigma(self, level: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Noise levels of drawn numbers."""

    @abstractmethod
    def weight(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Weight of the squared error at a noise level."""

    @override
    def __call__(
        self,
        denoiser: Denoiser,
        images: Float[Tensor, "B C H W"],
        condition: Condition,
        draws: LossDraws,
    ) -> LossTerms:
        sigma = self.sigma(draws.level)
        noisy = images + draws.noise * _column(sigma)
        error = denoiser(noisy, sigma, condition) - images
        return LossTerms(loss=_column(self.weight(sigma)) * error**2, sigma=sigma)


@dataclass(frozen=True, kw_only=True)
class EDMLoss(WeightedLoss):
    """EDM's loss: log-normal noise levels, weighted to be of equal size at every one of them.

    Source: arXiv:2206.00364, Table 1, last column.

    Attributes:
        P_mean: mean of ln sigma.
        P_std: standard deviation of ln sigma, > 0.
        sigma_data: standard deviation of the data, > 0; that of the preconditioning.
    """

    normal_levels: ClassVar[bool] = True

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require(self.P_std > 0, "P_std > 0", self.P_std)
        _require(self.sigma_data > 0, "sigma_data > 0", self.sigma_data)

    def sigma(self, level: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """``exp(P_std n + P_mean)``."""
        return (level * self.P_std + self.P_mean).exp()

    def weight(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2``, the inverse square of c_out."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True, kw_only=True)
class VPLoss(WeightedLoss):
    """Loss of variance-preserving models: uniform time, epsilon error (EDM's Table 1).

    Attributes:
        beta_d: extent of the noise schedule, > 0.
        beta_min: its initial slope, > 0.
        epsilon_t: smallest time, between 0 and 1.
    """

    normal_levels: ClassVar[bool] = False

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def __post_init__(self) -> None:
        _require(self.beta_d > 0, "beta_d > 0", self.beta_d)
        _require(self.beta_min > 0, "beta_min > 0", self.beta_min)
        _require(0 < self.epsilon_t < 1, "epsilon_t between 0 and 1", self.epsilon_t)

    def sigma(self, level: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """``sigma(t)`` at ``t = 1 + u (epsilon_t - 1)``, in the draw's own dtype (float32)."""
        return vp_sigma(1 + level * (self.epsilon_t - 1), self.beta_d, self.beta_min)

    def weight(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """``1 / sigma^2``."""
        return 1 / sigma**2


@dataclass(frozen=True, kw_only=True)
class VELoss(WeightedLoss):
    """Loss of variance-exploding models: log-uniform noise levels (EDM's Table 1).

    Attributes:
        sigma_min: smallest noise level, > 0.
        sigma_max: largest one.
    """

    normal_levels: ClassVar[bool] = False

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _require(0 < self.sigma_min < self.sigma_max, "0 < sigma_min < sigma_max", self.sigma_min)

    def sigma(self, level: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """``sigma_min (sigma_max / sigma_min)^u``."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** level

    def weight(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """``1 / sigma^2``."""
        return 1 / sigma**2


LOSSES: Registry[type[DenoisingLoss]] = Registry(
    "genlab.losses",
    {
        "edm": "genlab.diffusion.losses:EDMLoss",
        "vp": "genlab.diffusion.losses:VPLoss",
        "ve": "genlab.diffusion.losses:VELoss",
        "flow": "genlab.diffusion.flow:FlowLoss",
        "ddpm": "genlab.diffusion.variational:DDPMLoss",
    },
    kind="loss",
)


def _column(values: Float[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    return values.reshape(-1, 1, 1, 1)


def _require(holds: bool, rule: str, value: float) -> None:
    if not holds:
        raise ConfigError(f"a denoising loss needs {rule}, got {value}")
