"""Langevin dynamics in the latent space of a GAN, led by a classifier or a discriminator.

Legend: B batch, Z numbers in a latent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError
from genlab.samplers.gan.rejection import check_discriminator
from genlab.samplers.guidance.classifier import Classifier


@runtime_checkable
class ImageClassifier(Classifier, Protocol):
    """A classifier that can be used on images (almost) without noise."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it knows."""
        ...

    @property
    def least_sigma(self) -> float:
        """The smallest noise level that it knows."""
        ...


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """Walk through the latents towards images that a classifier takes for their class.

    ``z + step_size / 2 * grad(scale * log p(class | G(z)) - |z|^2 / 2) + sqrt(step_size) * noise``,
    so many times: the latents come to follow ``p(z) p(class | G(z))^scale``. With a discriminator
    in place of the classifier its calibrated logit D(G(z), class) stands for ``log p(class |
    G(z))``, and with a scale of 1 the images come to follow the data, as far as D is right.

    Choose it to make classes clearer where a GAN mixes them up, or with a discriminator for better
    images at a cost that, unlike that of `Rejection`, is known beforehand.

    Costs ``steps`` + 1 evaluations of the generator and ``steps`` of the classifier for each image,
    all but the last with the way back.

    With truncation the walk takes place before latents are scaled by it, and is reflected where the
    normal distribution is cut off, so that it keeps to the truncated one. Steps are finite and none
    is rejected: the distribution is met up to an error that grows with ``step_size``.

    Attributes:
        classifier: a bundled name or the folder of a classifier of noisy images, used at its
            smallest noise level, or an `ImageClassifier` itself.
        discriminator: in place of it, the folder of a calibrated discriminator, or a
            `Discriminator`.
        steps: >= 1.
        step_size: > 0; it should stay below 1, since the prior alone is unstable from 4.
        scale: weight of the classifier, >= 0; 0 walks about the prior.
        temperature: of the walk, >= 0: the noise is multiplied by its square root. 0 climbs to the
            nearest peak.

    Source: Nguyen et al. 2017, arXiv:1612.00005, Section 2, with the prior of the latents in place
    of a learned one; Che et al. 2020, arXiv:2003.06060, for the discriminator.
    """

    classifier: Any = None
    discriminator: Any = None
    steps: int = 20
    step_size: float = 0.05
    scale: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if (self.classifier is None) == (self.discriminator is None):
            raise ConfigError(
                "sampler.langevin needs a classifier or a discriminator, and not both; for "
                "instance sampler.langevin.classifier=classifier-fmnist"
            )
        if self.discriminator is not None:
            check_discriminator("sampler.langevin", self.discriminator)
        elif not isinstance(self.classifier, str | Path | ImageClassifier):
            raise ConfigError(
                "sampler.langevin needs classifier: a name, a folder or a NoisyClassifier, got a "
                f"{type(self.classifier).__name__}"
            )
        rules = {
            "steps >= 1": self.steps >= 1,
            "step_size > 0": 0 < self.step_size < math.inf,
            "scale >= 0": 0 <= self.scale < math.inf,
            "temperature >= 0": 0 <= self.temperature < math.inf,
        }
        for rule, holds in rules.items():
            if not holds:
                name = rule.split()[0]
                raise ConfigError(f"sampler.langevin needs {rule}, got {getattr(self, name)}")

    def describe(self) -> str:
        """Model, steps and strength, in a few words."""
        by = "discriminator" if self.classifier is None else "classifier"
        return (
            f"langevin by a {by} ({self.steps} steps of {self.step_size:g}, scale {self.scale:g})"
        )

    def log_p(
        self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """``log p(class | image)`` of each image, or the discriminator's calibrated logit."""
        if self.discriminator is not None:
            logits: Tensor = self.discriminator(images, labels)
            return logits
        sigma = torch.tensor(self.classifier.least_sigma)
        log_p: Tensor = self.classifier(images, sigma).log_softmax(1)
        return log_p.gather(1, labels[:, None])[:, 0]

    def move(
        self,
        z: Float[Tensor, "B Z"],
        gradient: Float[Tensor, "B Z"],
        noise: Noise,
        bound: float | None,
    ) -> Float[Tensor, "B Z"]:
        """Take one step.

        Args:
            z: latents whose prior is normal, within the bound.
            gradient: of ``log p(class | G(z))`` at ``z``.
            noise: what is drawn from.
            bound: where the prior is cut off; None cuts nothing off.
        """
        drift = self.scale * gradient.to(z.dtype) - z
        fresh = noise.randn(z.shape[1:], torch.float64).to(z)
        spread = math.sqrt(self.step_size * self.temperature)
        moved = z + self.step_size / 2 * drift + spread * fresh
        return moved if bound is None else reflect(moved, bound)


def reflect(z: Float[Tensor, "*s"], bound: float) -> Float[Tensor, "*s"]:
    """Mirror numbers at -bound and bound, as often as it takes to lie between them.

    >>> reflect(torch.tensor([0.5, 2.5, -3.0, 7.0]), 2.0).tolist()
    [0.5, 1.5, -1.0, -1.0]
    """
    return bound - ((z + bound).remainder(4 * bound) - 2 * bound).abs()


def latent_gradient(
    log_p: Callable[[Float[Tensor, "B Z"]], Float[Tensor, " B"]], z: Float[Tensor, "B Z"]
) -> Float[Tensor, "B Z"]:
    """Gradient of each sample's ``log_p`` at its latent; the samples must not depend on each other.

    Args:
        log_p: of latents.
        z: where.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        [gradient] = torch.autograd.grad(log_p(z).sum(), z)
    return gradient
