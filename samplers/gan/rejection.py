"""Discriminator rejection sampling: draw again until a discriminator takes the image.

Legend: B batch, N images of the burn-in.

Source: Azadi et al. 2018, arXiv:1810.06758, Algorithm 1.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from genlab.errors import ConfigError
from genlab.samplers.parts import Part


@runtime_checkable
class Discriminator(Part, Protocol):
    """A discriminator, such as `genlab.generators.discriminator.GanDiscriminator`."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it judges."""
        ...

    @property
    def is_calibrated(self) -> bool:
        """Whether its logits are log density ratios, as far as it can tell."""
        ...

    def __call__(
        self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Logits, which estimate ``log p_data(x | class) - log p_generator(x | class)``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Draw images again until a discriminator accepts one, with probability sigmoid(F).

    ``F = D - M - log(1 - exp(D - M - epsilon)) - gamma`` for the calibrated logit D of an image,
    the largest logit M and a percentile gamma of the first terms. With gamma = 0 this is exact
    rejection sampling of the data, as far as D is right.

    Choose it for better images of a GAN whose discriminator was kept, where more time for an image
    is no matter.

    Costs one evaluation of the generator and one of the discriminator for each candidate, and so
    many for each of the ``burn_in`` images once a run.

    M and gamma come from the images of the seeds 0, 1, 2, ... with their own classes, the same for
    every run, process and batch. The published algorithm raises M whenever a candidate surpasses
    it; here it is raised for this candidate alone, since otherwise an image would depend on those
    that were drawn before it. Where a probability comes so near to the uniform number that rounding
    decides, another batch size may decide otherwise.

    Attributes:
        discriminator: the folder of a calibrated discriminator (``genlab train export RUN
            --discriminator``), or a `Discriminator` itself.
        percentile: of F without gamma among the images of the burn-in, which becomes gamma, 0 to
            100. About this share of them is accepted with a probability below one half.
        burn_in: images that give M and gamma, >= 1.
        max_tries: candidates of a sample, >= 1. Where none is accepted, the one with the largest
            logit is taken, and counted as exhausted.
        epsilon: > 0; keeps F finite where D is M.

    Source: Azadi et al. 2018, arXiv:1810.06758, Algorithm 1.
    """

    discriminator: Any
    percentile: float = 60.0
    burn_in: int = 1024
    max_tries: int = 100
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_discriminator("sampler.rejection", self.discriminator)
        rules = {
            "0 <= percentile <= 100": 0 <= self.percentile <= 100,
            "burn_in >= 1": self.burn_in >= 1,
            "max_tries >= 1": self.max_tries >= 1,
            "epsilon > 0": 0 < self.epsilon < math.inf,
        }
        for rule, holds in rules.items():
            if not holds:
                name = next(name for name in vars(self) if name in rule)
                raise ConfigError(f"sampler.rejection needs {rule}, got {getattr(self, name)}")

    def describe(self) -> str:
        """Percentile and bound, in a few words."""
        return f"rejection (percentile {self.percentile:g}, {self.max_tries} tries)"

    def threshold(self, logits: Float64[Tensor, " N"]) -> "Threshold":
        """M and gamma of the logits of a burn-in, on the CPU.

        Raises:
            ConfigError: they are not finite.
        """
        if not bool(logits.isfinite().all()):
            raise ConfigError(
                "the discriminator's logits of the burn-in are not finite, so that nothing can be "
                "rejected by them; check its weights, or compute in float32"
            )
        whole = Threshold(max_logit=logits.max().item(), gamma=0.0, epsilon=self.epsilon)
        gamma = whole.log_odds(logits).quantile(self.percentile / 100).item()
        return Threshold(max_logit=whole.max_logit, gamma=gamma, epsilon=self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The acceptance threshold; see `Rejection`.

    Attributes:
        max_logit: M.
        gamma: what is taken off the log odds of acceptance.
        epsilon: see `Rejection`.
    """

    max_logit: float
    gamma: float
    epsilon: float

    def log_odds(self, logits: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """F, the log odds of acceptance. A logit above M raises M for itself."""
        below = (logits - self.max_logit).clamp(max=0)
        return below - torch.log(-torch.expm1(below - self.epsilon)) - self.gamma

    def accepts(
        self, logits: Float64[Tensor, " B"], uniforms: Float64[Tensor, " B"]
    ) -> Bool[Tensor, " B"]:
        """Which images are accepted, by one uniform number in [0, 1) each."""
        return uniforms < self.log_odds(logits).sigmoid()


def check_discriminator(where: str, discriminator: Any) -> None:
    """Refuse what is neither the name of a discriminator nor one.

    Raises:
        ConfigError: says what it is.
    """
    if not isinstance(discriminator, str | Path | Discriminator):
        raise ConfigError(
            f"{where} needs discriminator: a folder or a GanDiscriminator, got a "
            f"{type(discriminator).__name__}"
        )


def check_judge(
    where: str, role: str, judge: Any, num_classes: int, image_shape: tuple[int, int, int]
) -> None:
    """Refuse a discriminator or classifier of other classes or images than the generator's.

    Args:
        where: the setting.
        role: the kind of model.
        judge: with ``num_classes`` and ``image_shape``.
        num_classes: of the generator.
        image_shape: of the generator.

    Raises:
        ConfigError: says what differs.
    """
    if judge.num_classes != num_classes:
        raise ConfigError(
            f"the {role} of {where} knows {judge.num_classes} classes and the generator "
            f"{num_classes}; take one that was trained on the generator's data"
        )
    if tuple(judge.image_shape) != tuple(image_shape):
        raise ConfigError(
            f"the {role} of {where} takes images of shape {tuple(judge.image_shape)} and the "
            f"generator draws {tuple(image_shape)}; take one that was trained on the generator's "
            "data"
        )


def require_calibration(where: str, discriminator: Discriminator) -> None:
    """Refuse a discriminator whose logits are no log density ratios.

    Raises:
        ConfigError: names the command that calibrates it.
    """
    if not discriminator.is_calibrated:
        raise ConfigError(
            f"the discriminator of {where} is not calibrated, so its logits are no density ratios; "
            "calibrate it with 'genlab calibrate DISCRIMINATOR GENERATOR IMAGES'"
        )
