"""BigGAN-deep in the layout of Hugging Face's conversion of DeepMind's generators.

It differs from `genlab.networks.biggan_deep` in more than names: the first features are laid out
height, width, channels; the latent stands before the class; spectral normalisation keeps pairs of
vectors; and the batch statistics are stored once for each of 51 truncations.

Legend: B batch, E conditioning vector, K sets of statistics.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.as_model import register_to_config
from genlab.networks.base import Labels, check_positive
from genlab.networks.biggan_deep import DeepGeneratorBlock
from genlab.networks.gan_base import BOTTOM, GeneratorNetwork
from genlab.networks.layers.gan_layers import (
    Features,
    SelfAttention,
    gan_layout,
    modulated_by_layers,
    normalize,
)
from genlab.networks.layers.precision import WideBuffers
from genlab.networks.layers.spectral_norm import Layers, PairedConv2d
from genlab.networks.layout import ClassTable, Layout, ModulatedNorm

RGB = 3
"""Channels of the images; the last convolution makes more, which are unused."""

FIRST_MULTIPLE = 16
"""Width of the first features, in multiples of ``channels``."""

BlockSpec = tuple[bool, int, int]
"""Whether a block doubles the resolution, and its widths in multiples of ``channels``."""

# The published generator for 128x128 pixels.
LAYERS_128: tuple[BlockSpec, ...] = (
    (False, 16, 16),
    (True, 16, 16),
    (False, 16, 16),
    (True, 16, 8),
    (False, 8, 8),
    (True, 8, 4),
    (False, 4, 4),
    (True, 4, 2),
    (False, 2, 2),
    (True, 2, 1),
)


class IndexedStatistics(WideBuffers):
    """Batch normalisation by a mixture of K stored sets of statistics.

    There are no batch statistics: such a network is not trained.
    """

    running_means: Tensor
    running_vars: Tensor

    def __init__(self, channels: int, *, num_stats: int, eps: float) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.register_buffer("running_means", torch.zeros(num_stats, channels))
        self.register_buffer("running_vars", torch.ones(num_stats, channels))

    def normalize(
        self, x: Features, gain: Tensor, bias: Tensor, mixture: Float[Tensor, " K"]
    ) -> Features:
        """Normalise, then multiply by the gain and add the bias: (C,) or (B, C)."""
        mixture = mixture.to(self.running_means)
        mean, var = mixture @ self.running_means, mixture @ self.running_vars
        return normalize(x, mean, var, gain, bias, self.eps)


class IndexedBatchNorm(IndexedStatistics):
    """With a learned gain and bias for each channel."""

    def __init__(self, channels: int, *, num_stats: int, eps: float) -> None:
        super().__init__(channels, num_stats=num_stats, eps=eps)
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Features, mixture: Float[Tensor, " K"]) -> Features:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.normalize(x, self.gain, self.bias, mixture)


class IndexedConditionalBatchNorm(IndexedStatistics):
    """With a gain and bias that come from the sample's conditioning vector."""

    def __init__(
        self, channels: int, condition_dim: int, layers: Layers, *, num_stats: int, eps: float
    ) -> None:
        super().__init__(channels, num_stats=num_stats, eps=eps)
        self.gain = layers.linear(condition_dim, channels, bias=False)
        self.bias = layers.linear(condition_dim, channels, bias=False)

    def forward(
        self, x: Features, condition: Float[Tensor, "B E"], mixture: Float[Tensor, " K"]
    ) -> Features:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.normalize(x, 1 + self.gain(condition), self.bias(condition), mixture)

    def modulated(self, path: str) -> ModulatedNorm:
        """How the condition acts on it, standing at ``path``."""
        return modulated_by_layers(path, self.channels)


class BigGANDeepHF(GeneratorNetwork):
    """BigGAN-deep's generator as DeepMind released it. For sampling: nothing here trains it.

    Args:
        img_resolution: height and width of the images.
        num_classes: number of classes.
        channels: base width.
        dim_z: numbers in a latent, and width of the class embedding.
        layers: for each block whether it doubles the resolution, and its widths before and after in
            multiples of ``channels``.
        attention_position: number of the block that self-attention stands before.
        eps: of normalisations, batch and spectral.
        num_stats: K, sets of statistics, for truncations from 0 to 1 in equal steps.

    Source: huggingface/pytorch-pretrained-BigGAN; Brock et al. 2018, arXiv:1809.11096, Appendix B.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int = 128,
        num_classes: int = 1000,
        channels: int = 128,
        dim_z: int = 128,
        layers: Sequence[Sequence[bool | int]] = LAYERS_128,
        attention_position: int = 8,
        eps: float = 1e-4,
        num_stats: int = 51,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            num_classes=num_classes,
            channels=channels,
            dim_z=dim_z,
            num_stats=num_stats,
        )
        if num_stats < 2:
            raise ConfigError(
                f"num_stats must be at least 2, for truncations 0 and 1, got {num_stats}"
            )
        if channels < RGB:
            raise ConfigError(
                f"channels must be at least {RGB}, those of the image, got {channels}"
            )
        blocks = _checked(layers, img_resolution)
        self.dim_z = dim_z
        self.num_classes = num_classes
        self.num_stats = num_stats
        condition_dim = 2 * dim_z
        paired = Layers(norm="pair", eps=eps)
        norm = partial(
            IndexedConditionalBatchNorm,
            condition_dim=condition_dim,
            layers=paired,
            num_stats=num_stats,
            eps=eps,
        )
        self.embeddings = nn.Linear(num_classes, dim_z, bias=False)
        self.gen_z = paired.linear(condition_dim, BOTTOM**2 * FIRST_MULTIPLE * channels)
        self.blocks = nn.ModuleList()
        for index, (doubles, before, after) in enumerate(blocks):
            width, next_width = before * channels, after * channels
            if index == attention_position:
                self.blocks.append(SelfAttention(width, paired))
            self.blocks.append(DeepGeneratorBlock(width, next_width, paired, norm, doubles=doubles))
        self.bn = IndexedBatchNorm(channels, num_stats=num_stats, eps=eps)
        self.conv_to_rgb = PairedConv2d(channels, channels, 3, eps=eps)

    @override
    def embed_labels(self, labels: Labels) -> Float[Tensor, "B E"]:
        if not labels.is_floating_point():
            labels = F.one_hot(labels.to(self.device), self.num_classes)
        embedding: Tensor = self.embeddings(labels.to(self.embeddings.weight))
        return embedding

    def forward(
        self,
        z: Float[Tensor, "B Z"],
        class_embedding: Float[Tensor, "B E"],
        mixture: Float[Tensor, " K"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Make images.

        Args:
            z: latents.
            class_embedding: of `embed_labels`.
            mixture: weights of the sets of statistics; they must be those of the truncation that
                the latents were drawn with. None is the last set, of truncation 1.

        Returns:
            (B, 3, img_resolution, img_resolution), in (-1, 1).
        """
        condition = torch.cat([z, class_embedding], dim=1)
        if mixture is None:
            mixture = F.one_hot(torch.tensor(self.num_stats - 1), self.num_stats)
        mixture = mixture.to(condition)
        # Already channels_last in memory: no copy.
        h = self.gen_z(condition).unflatten(1, (BOTTOM, BOTTOM, -1)).permute(0, 3, 1, 2)
        for layer in self.blocks:
            h = layer(h) if isinstance(layer, SelfAttention) else layer(h, condition, mixture)
        h = F.relu(self.bn(h, mixture), inplace=True)
        return self._to_rgb(h).tanh()

    @override
    def layout(self) -> Layout:
        parts = {
            path: [block.parts(path, block=path)]
            for path, block in self.named_modules()
            if isinstance(block, DeepGeneratorBlock | SelfAttention)
        }
        return gan_layout(
            self,
            tables=[ClassTable(layer="embeddings", axis=1)],
            last=["bn", "conv_to_rgb"],
            parts=parts,
            normalizations=(IndexedStatistics,),
        )

    def _to_rgb(self, h: Features) -> Float[Tensor, "B 3 H W"]:
        """The channels that become the image: a fifth of all work went into the others."""
        conv = self.conv_to_rgb
        assert conv.bias is not None
        return F.conv2d(h, conv.normalized_weight()[:RGB], conv.bias[:RGB], padding=1)


def _checked(layers: Sequence[Sequence[bool | int]], img_resolution: int) -> list[BlockSpec]:
    """The blocks, made sure that they fit together.

    Raises:
        ConfigError: says which do not.
    """
    blocks: list[BlockSpec] = [(bool(doubles), int(a), int(b)) for doubles, a, b in layers]
    width, resolution = FIRST_MULTIPLE, BOTTOM
    for index, (doubles, before, after) in enumerate(blocks):
        if before != width or after not in (before, before // 2) or after < 1:
            raise ConfigError(
                f"layers[{index}] goes from width {before} to {after} after one of {width}; a "
                f"block begins with the width before it (first {FIRST_MULTIPLE}) and keeps or "
                "halves it"
            )
        width, resolution = after, resolution << doubles
    if width != 1 or resolution != img_resolution:
        raise ConfigError(
            f"layers end in width {width} and {resolution}x{resolution} pixels; they must end in "
            f"width 1 and the img_resolution, {img_resolution}"
        )
    return blocks
