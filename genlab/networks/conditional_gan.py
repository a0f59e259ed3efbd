"""A plain conditional GAN: the smallest generator and discriminator, with the switches of 2016.

Legend: B batch, R reference batch, N both, C channels, F features, K kernels, D their dimensions.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.choices import check_choice
from genlab.errors import ConfigError
from genlab.networks.as_model import register_to_config
from genlab.networks.base import Labels, check_positive
from genlab.networks.gan_base import BOTTOM, DiscriminatorNetwork, GeneratorNetwork
from genlab.networks.layers.gan_layers import BatchNorm, embed_shared
from genlab.networks.layers.precision import wide
from genlab.networks.layout import ClassTable, Layout, buffers_of, build_layout

SLOPE = 0.2
"""Of the discriminator's leaky ReLUs."""

STD = 0.02
"""Of the first weights of convolutions and linear layers (DCGAN)."""

EPS = 1e-5
"""Added to the variances of normalisations."""


def num_doublings(img_resolution: int) -> int:
    """How often 4x4 features are doubled to reach a resolution.

    Raises:
        ConfigError: doubling does not reach it.
    """
    doublings = max(0, img_resolution // BOTTOM).bit_length() - 1
    if doublings < 1 or BOTTOM << doublings != img_resolution:
        raise ConfigError(
            f"the plain conditional GAN draws images of 8, 16, 32, ... pixels, not of "
            f"{img_resolution}; change data.image_size and data.fit"
        )
    return doublings


class VirtualBatchNorm(nn.Module):
    """Normalises each sample by the statistics of a fixed reference batch and of itself alone.

    The first ``num_reference`` rows of what comes in are that batch, on its way through the same
    network; they are normalised by their own statistics. A sample counts in its statistics as one
    more of the batch, so its output does not depend on the samples beside it.

    Args:
        channels: C.
        num_reference: R.
        eps: added to the variance.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 3.5.
    """

    def __init__(self, channels: int, num_reference: int, eps: float = EPS) -> None:
        super().__init__()
        self.num_reference, self.eps = num_reference, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Reference batch first."""
        h = x.to(wide(x.dtype))
        # Centred, or small variances would be lost beside the squares of large means.
        h = h - h[: self.num_reference].detach().mean((0, 2, 3), keepdim=True)
        mean = self._blend(h.mean((2, 3), keepdim=True))
        square = self._blend(h.square().mean((2, 3), keepdim=True))
        normalized = (h - mean) * torch.rsqrt((square - mean.square()).clamp_min(0) + self.eps)
        return (normalized * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _blend(self, moments: Float[Tensor, "N C 1 1"]) -> Float[Tensor, "N C 1 1"]:
        """The moments of the reference batch, for each further sample with its own among them."""
        of_reference = moments[: self.num_reference].mean(0, keepdim=True)
        of_samples = moments[self.num_reference :]
        blended = of_reference + (of_samples - of_reference) / (self.num_reference + 1)
        return torch.cat([of_reference.expand(self.num_reference, -1, -1, -1), blended])


class ConditionalGenerator(GeneratorNetwork):
    """Latent and class vector side by side, then transposed convolutions from 4x4 upwards.

    Args:
        img_resolution: height and width of the images: 8, 16, 32, ...
        num_classes: number of classes.
        img_channels: channels of the images.
        channels: width before the last layer; it doubles towards the bottom.
        dim_z: numbers in a latent.
        label_dim: width of the class vector.
        norm: what follows each layer but the last: "batch" normalisation, "virtual" batch
            normalisation, or "none".
        num_reference: samples in the reference batch of virtual batch normalisation, which is drawn
            once and saved with the weights.

    Source: Mirza and Osindero 2014, arXiv:1411.1784, with the convolutions of DCGAN (Radford et al.
    2015, arXiv:1511.06434) for its linear layers.
    """

    reference_z: Tensor
    reference_labels: Tensor

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        num_classes: int,
        img_channels: int = 3,
        channels: int = 32,
        dim_z: int = 64,
        label_dim: int = 16,
        norm: str = "batch",
        num_reference: int = 32,
    ) -> None:
        super().__init__()
        check_positive(
            num_classes=num_classes,
            img_channels=img_channels,
            channels=channels,
            dim_z=dim_z,
            label_dim=label_dim,
            num_reference=num_reference,
        )
        check_choice("norm", norm, ("batch", "virtual", "none"))
        doublings = num_doublings(img_resolution)
        self.dim_z, self.num_classes = dim_z, num_classes
        self.num_reference = num_reference if norm == "virtual" else 0
        if self.num_reference:
            self.register_buffer("reference_z", torch.randn(num_reference, dim_z))
            # Every class in turn: whoever builds the network again gets the same ones.
            self.register_buffer("reference_labels", torch.arange(num_reference) % num_classes)

        def normalize(width: int) -> nn.Module:
            if norm == "virtual":
                return VirtualBatchNorm(width, num_reference)
            return BatchNorm(width, eps=EPS) if norm == "batch" else nn.Identity()

        self.embedding = nn.Embedding(num_classes, label_dim)
        width = channels << (doublings - 1)
        self.linear = nn.Linear(dim_z + label_dim, width * BOTTOM**2)
        self.bottom_norm = normalize(width)
        self.blocks = nn.ModuleList()
        for _ in range(doublings - 1):
            double = nn.ConvTranspose2d(width, width // 2, 4, 2, 1)
            self.blocks.append(nn.Sequential(double, normalize(width // 2), nn.ReLU()))
            width //= 2
        self.output_layer = nn.ConvTranspose2d(width, img_channels, 4, 2, 1)
        _draw_weights(self)

    @override
    def embed_labels(self, labels: Labels) -> Float[Tensor, "B E"]:
        return embed_shared(self.embedding, labels)

    @override
    def forward(
        self, z: Float[Tensor, "B Z"], class_embedding: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B C H W"]:
        if self.num_reference:
            of_reference = self.embed_labels(self.reference_labels)
            z = torch.cat([self.reference_z.to(z), z])
            class_embedding = torch.cat([of_reference.to(class_embedding), class_embedding])
        h = self.linear(torch.cat([z, class_embedding], 1)).unflatten(1, (-1, BOTTOM, BOTTOM))
        h = F.relu(self.bottom_norm(h))
        for block in self.blocks:
            h = block(h)
        return torch.tanh(self.output_layer(h[self.num_reference :]))

    @override
    def layout(self) -> Layout:
        """There are no residual branches."""
        return build_layout(
            self,
            blocks=[f"blocks.{index}" for index in range(len(self.blocks))],
            tables=[ClassTable(layer="embedding")],
            statistics=buffers_of(self, BatchNorm),
            modules={"last": ["output_layer"]},
            normalizations=(BatchNorm, VirtualBatchNorm),
        )


class MinibatchDiscrimination(nn.Module):
    """Tells how near each sample's features are to those of the others in the batch.

    Each of K kernels maps the features to D numbers; what comes out is the sum over the other
    samples of ``exp(-|difference|_1)``. (The paper's sum has the sample itself too: a constant 1.)

    Args:
        num_features: F.
        num_kernels: K.
        kernel_dim: D.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 3.2.
    """

    def __init__(self, num_features: int, num_kernels: int, kernel_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_kernels * kernel_dim, num_features))
        nn.init.normal_(self.weight, std=1 / math.sqrt(num_features))
        self.num_kernels = num_kernels

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """Between 0, far from all others, and B - 1, the same as all others."""
        places = F.linear(features, self.weight).unflatten(1, (self.num_kernels, -1))  # (B, K, D)
        distances = (places[:, None] - places[None]).abs().sum(-1)  # (B, B, K)
        return torch.exp(-distances).sum(1) - 1


class ConditionalDiscriminator(DiscriminatorNetwork):
    """Strided convolutions down to 4x4, whose features are judged alone and against the class.

    Args:
        img_resolution: height and width of the images: 8, 16, 32, ...
        num_classes: number of classes.
        img_channels: channels of the images.
        channels: width of the first layer; it doubles with each halving of the image.
        minibatch_kernels: K of `MinibatchDiscrimination` before the last layer; 0 does without.
        minibatch_dim: its D.

    Source: see `ConditionalGenerator`. Departures: no batch normalisation, which would mix real and
    made images; the class comes in by a product with the features (Miyato and Koyama 2018,
    arXiv:1802.05637), for as one more plane of the image it taught this network little.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        num_classes: int,
        img_channels: int = 3,
        channels: int = 32,
        minibatch_kernels: int = 0,
        minibatch_dim: int = 8,
    ) -> None:
        super().__init__()
        check_positive(
            num_classes=num_classes,
            img_channels=img_channels,
            channels=channels,
            minibatch_dim=minibatch_dim,
        )
        if minibatch_kernels < 0:
            raise ConfigError(f"minibatch_kernels must be at least 0, got {minibatch_kernels}")
        self.num_classes = num_classes
        self.blocks = nn.ModuleList()
        before, width = img_channels, channels
        for _ in range(num_doublings(img_resolution)):
            halve = nn.Conv2d(before, width, 4, 2, 1)
            nn.init.kaiming_normal_(halve.weight, SLOPE)  # nothing else keeps features in scale
            self.blocks.append(nn.Sequential(halve, nn.LeakyReLU(SLOPE)))
            before, width = width, 2 * width
        num_features = before * BOTTOM**2
        self.minibatch = (
            MinibatchDiscrimination(num_features, minibatch_kernels, minibatch_dim)
            if minibatch_kernels
            else None
        )
        self.linear = nn.Linear(num_features + minibatch_kernels, 1)
        self.embedding = nn.Embedding(num_classes, num_features)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(num_features))

    @override
    def forward(
        self, x: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, "B 1"]:
        h = x
        for block in self.blocks:
            h = block(h)
        features = h.flatten(1)
        of_class = (self.embedding(labels) * features).sum(1, keepdim=True)
        if self.minibatch is not None:
            features = torch.cat([features, self.minibatch(features)], 1)
        scores: Tensor = self.linear(features) + of_class
        return scores

    @override
    def layout(self) -> Layout:
        """There are no residual branches."""
        return build_layout(
            self,
            blocks=[f"blocks.{index}" for index in range(len(self.blocks))],
            tables=[ClassTable(layer="embedding")],
            modules={"last": ["linear"]},
        )


def _draw_weights(network: nn.Module) -> None:
    """DCGAN's first weights."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
