"""A GAN whose every distribution is known: one pixel, uniform in [-1, 1] as it is drawn.

The pixel is that of a normal number z, 2 Phi(z) - 1; the data have the density (1 + x) / 2, in
class 1 its mirror image, so that the density ratio is 1 + x, or 1 - x.
"""

import torch
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  # diffusers looks for it here
from torch import Tensor, nn

from genlab.diffusion.preconditioning import EDM
from genlab.generators.discriminator import Calibration, GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks.as_model import register_to_config
from genlab.networks.base import Network
from genlab.networks.gan_base import DiscriminatorNetwork, GeneratorNetwork

EXACT = Calibration(slope=1.0, intercept=0.0, error_rate=0.25, log_loss=0.5, images=1000)


class ToyGenerator(GeneratorNetwork):
    """x = 2 Phi(z) - 1, or z itself."""

    @register_to_config
    def __init__(
        self,
        img_resolution: int = 1,
        img_channels: int = 1,
        num_classes: int = 2,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.dim_z, self.num_classes, self.linear = 1, num_classes, linear
        self.gain = nn.Parameter(torch.ones(1))

    def embed_labels(self, labels: Tensor) -> Tensor:
        return labels

    def forward(self, z: Tensor, class_embedding: Tensor) -> Tensor:
        z = z * self.gain
        return (z if self.linear else 2 * torch.special.ndtr(z) - 1)[:, :, None, None]


class ToyDiscriminator(DiscriminatorNetwork):
    """log(1 + x) in class 0, log(1 - x) in class 1, times ``factor`` plus ``shift``."""

    @register_to_config
    def __init__(
        self,
        img_resolution: int = 1,
        img_channels: int = 1,
        num_classes: int = 2,
        factor: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.factor, self.shift = num_classes, factor, shift
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        signed = x.flatten(1)[:, :1] * (1 - 2 * labels[:, None])
        return self.gain * self.factor * torch.log((1 + signed).clamp(min=1e-6)) + self.shift


class ToyClassifier(Network):
    """Logits 0 and 3 x: sure of class 1 where the image is bright."""

    @register_to_config
    def __init__(self, img_resolution: int = 1, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        # x comes divided by sqrt(sigma^2 + sigma_data^2), and sigma is nearly 0.
        bright = self.gain * 0.5 * x.flatten(1)[:, :1]
        return torch.cat([torch.zeros_like(bright), bright], dim=1)


def toy_gan(linear: bool = False) -> GanGenerator:
    return GanGenerator(ToyGenerator(linear=linear))


def toy_discriminator(calibration: Calibration | None = EXACT) -> GanDiscriminator:
    return GanDiscriminator(ToyDiscriminator(), calibration=calibration)


def toy_classifier() -> NoisyClassifier:
    return NoisyClassifier(ToyClassifier(), EDM())
