"""BigGAN: a class-conditional generator and a projection discriminator.

Source: Brock et al. 2018, arXiv:1809.11096, Appendix B, as BigGAN-PyTorch builds it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.as_model import register_to_config
from genlab.networks.base import Labels, check_positive
from genlab.networks.gan_base import (
    BOTTOM,
    DiscriminatorNetwork,
    GeneratorNetwork,
    check_attention,
    widths_for,
)
from genlab.networks.layers.gan_layers import (
    ConditionalBatchNorm,
    Conditioning,
    Features,
    Init,
    ResidualBlock,
    SelfAttention,
    Stage,
    conditional_tables,
    draw_weights,
    embed_shared,
    gan_layout,
    output_layer,
    project,
    projection_table,
    upsample,
)
from genlab.networks.layers.spectral_norm import Layers
from genlab.networks.layout import ClassTable, Layout

GENERATOR_WIDTHS = {
    32: (4, 4, 4),
    64: (16, 8, 4, 2),
    128: (16, 8, 4, 2, 1),
    256: (16, 8, 8, 4, 2, 1),
    512: (16, 8, 8, 4, 2, 1, 1),
}
"""Output width of each block, in multiples of ``channels``; each block doubles the resolution."""

DISCRIMINATOR_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
"""Output width of each block; all but the last (at 32 pixels the last two) halve the resolution."""


def generator_resolutions(num_blocks: int) -> list[int]:
    """What each of the generator's stages puts out."""
    return [BOTTOM << (index + 1) for index in range(num_blocks)]


def discriminator_resolutions(
    img_resolution: int, halves: Sequence[bool], official_table: bool
) -> list[int]:
    """The output resolution of each of the discriminator's stages, or the official table's."""
    if official_table and img_resolution == 32:
        return [16] * len(halves)
    resolutions = []
    for half in halves:
        img_resolution //= 2 if half else 1
        resolutions.append(img_resolution)
    return resolutions


class GeneratorBlock(ResidualBlock):
    """Batch normalisation, ReLU, doubling, 3x3, again without doubling; a 1x1 shortcut."""

    convolutions = ("conv1", "conv2")
    conditional_norms = ("bn1", "bn2")

    def __init__(
        self, in_channels: int, out_channels: int, layers: Layers, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = layers.conv(in_channels, out_channels)
        self.conv2 = layers.conv(out_channels, out_channels)
        self.conv_sc = layers.conv(in_channels, out_channels, 1)
        self.bn1 = norm(in_channels)
        self.bn2 = norm(out_channels)

    def forward(self, x: Features, condition: Conditioning) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, 2H, 2W)."""
        h = self.conv1(upsample(F.relu(self.bn1(x, condition), inplace=True)))
        h = self.conv2(F.relu(self.bn2(h, condition), inplace=True))
        # A 1x1 convolution of repeated pixels is the repeated convolution, at a quarter of the work
        return h + upsample(self.conv_sc(x))


class BigGANGenerator(GeneratorNetwork):
    """BigGAN's generator.

    Args:
        img_resolution: height and width of the images: 32, 64, 128, 256 or 512.
        num_classes: number of classes.
        img_channels: channels of the images.
        channels: base width; the blocks have multiples of it.
        widths: these multiples, one for each block; None takes `GENERATOR_WIDTHS`.
        dim_z: numbers in a latent; with ``hierarchical`` a multiple of the number of blocks + 1.
        attn_resolutions: output resolutions of blocks that self-attention follows.
        shared_embedding: whether one class embedding serves all blocks; else every conditional
            batch normalisation has tables of its own.
        shared_dim: width of the shared embedding; None is ``dim_z``.
        hierarchical: whether each block gets a chunk of the latent beside the class.
        own_batch_norm: whether running variances are biased ones (see `Statistics`).
        bn_eps: added to variances, but for the last normalisation.
        spectral_norm: whether convolutions and linear layers are spectrally normalised; the shared
            embedding never is.
        num_svs: singular values tracked.
        num_itrs: rounds of power iteration in a training call.
        sn_eps: see `Layers`.
        init: how weights are drawn: "orthogonal", "normal" (0.02) or "xavier".

    Source: Brock et al. 2018, arXiv:1809.11096, Figure 15 and Appendix B.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        num_classes: int,
        img_channels: int = 3,
        channels: int = 64,
        widths: Sequence[int] | None = None,
        dim_z: int = 120,
        attn_resolutions: Sequence[int] = (),
        shared_embedding: bool = True,
        shared_dim: int | None = None,
        hierarchical: bool = True,
        own_batch_norm: bool = False,
        bn_eps: float = 1e-5,
        spectral_norm: bool = True,
        num_svs: int = 1,
        num_itrs: int = 1,
        sn_eps: float = 1e-6,
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        shared_dim = dim_z if shared_dim is None else shared_dim
        check_positive(
            num_classes=num_classes,
            img_channels=img_channels,
            channels=channels,
            dim_z=dim_z,
            shared_dim=shared_dim,
        )
        if hierarchical and not shared_embedding:
            raise ConfigError(
                "hierarchical latents stand beside the shared class embedding; set "
                "shared_embedding=True or hierarchical=False"
            )
        multiples = widths_for(img_resolution, GENERATOR_WIDTHS, widths)
        resolutions = generator_resolutions(len(multiples))
        attention = check_attention(attn_resolutions, resolutions)
        self.dim_z = dim_z
        self.num_classes = num_classes
        self.num_chunks = len(multiples) + 1 if hierarchical else 1
        if dim_z % self.num_chunks:
            raise ConfigError(
                f"dim_z {dim_z} cannot be cut into {self.num_chunks} equal chunks, one for each "
                f"block and one to begin with; use {dim_z - dim_z % self.num_chunks}"
            )
        chunk = dim_z // self.num_chunks

        kind: Literal["power", "none"] = "power" if spectral_norm else "none"
        layers = Layers(norm=kind, num_svs=num_svs, num_itrs=num_itrs, eps=sn_eps)
        make: Callable[[int], nn.Module] = partial(nn.Embedding, num_classes)
        if shared_embedding:
            condition_dim = shared_dim + (chunk if hierarchical else 0)
            make = partial(layers.linear, condition_dim, bias=False)
        norm = partial(ConditionalBatchNorm, make=make, eps=bn_eps, own=own_batch_norm)
        block_widths = [channels * multiple for multiple in multiples]

        self.shared = nn.Embedding(num_classes, shared_dim) if shared_embedding else None
        self.linear = layers.linear(chunk, block_widths[0] * BOTTOM**2)
        self.blocks = nn.ModuleList()
        for width, next_width, resolution in zip(
            [block_widths[0], *block_widths], block_widths, resolutions, strict=False
        ):
            stage = Stage([GeneratorBlock(width, next_width, layers, norm)])
            if resolution in attention:
                stage.append(SelfAttention(next_width, layers))
            self.blocks.append(stage)
        self.output_layer = output_layer(
            block_widths[-1], img_channels, layers, own_batch_norm=own_batch_norm
        )
        draw_weights(self, init)

    @override
    def embed_labels(self, labels: Labels) -> Float[Tensor, "B E"] | Int64[Tensor, " B"]:
        return embed_shared(self.shared, labels)

    @override
    def forward(
        self, z: Float[Tensor, "B Z"], class_embedding: Float[Tensor, "B E"] | Int64[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        first, *chunks = z.chunk(self.num_chunks, dim=1)
        conditions = [torch.cat([class_embedding, chunk], dim=1) for chunk in chunks]
        if not chunks:
            conditions = [class_embedding] * len(self.blocks)
        h = self.linear(first).unflatten(1, (-1, BOTTOM, BOTTOM))
        for stage, condition in zip(self.blocks, conditions, strict=True):
            h = stage(h, condition)
        return self.output_layer(h).tanh()

    @override
    def layout(self) -> Layout:
        shared = [] if self.shared is None else [ClassTable(layer="shared")]
        return gan_layout(self, tables=[*shared, *conditional_tables(self)], last=["output_layer"])


class DiscriminatorBlock(ResidualBlock):
    """ReLU, 3x3, ReLU, 3x3, halving; the first block begins without ReLU.

    Args:
        in_channels: C.
        out_channels: D.
        layers: makes the convolutions.
        wide: whether the width between the convolutions is D, else C.
        first: whether the input is the image.
        halve: whether height and width are halved.
    """

    convolutions = ("conv1", "conv2")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: Layers,
        *,
        wide: bool,
        first: bool,
        halve: bool,
    ) -> None:
        super().__init__()
        hidden = out_channels if wide else in_channels
        self.out_channels = out_channels
        self.first = first
        self.halve = halve
        self.conv1 = layers.conv(in_channels, hidden)
        self.conv2 = layers.conv(hidden, out_channels)
        project = halve or in_channels != out_channels
        self.conv_sc = layers.conv(in_channels, out_channels, 1) if project else None

    def forward(self, x: Features) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, H, W), or half of it."""
        h = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu(h, inplace=True))
        # Pooling and a 1x1 convolution may change places: the order with less work.
        h, x = (F.avg_pool2d(t, 2) if self.halve else t for t in (h, x))
        return h + (x if self.conv_sc is None else self.conv_sc(x))


class BigGANDiscriminator(DiscriminatorNetwork):
    """BigGAN's projection discriminator.

    Args:
        img_resolution: height and width of the images: 32, 64, 128 or 256.
        num_classes: number of classes.
        img_channels: channels of the images.
        channels: base width; the blocks have multiples of it.
        widths: these multiples, one for each block; None takes `DISCRIMINATOR_WIDTHS`.
        wide: whether a block widens at its first convolution (SA-GAN, BigGAN), else at its second.
        attn_resolutions: output resolutions of blocks that self-attention follows.
        official_attention_table: whether at 32 pixels ``attn_resolutions`` is looked up in the
            official table, which says 16 for every block, although they put out 16, 8, 8 and 8.
        num_svs: singular values tracked.
        num_itrs: rounds of power iteration in a training call.
        sn_eps: see `Layers`.
        init: how weights are drawn: "orthogonal", "normal" (0.02) or "xavier".

    Source: Brock et al. 2018, arXiv:1809.11096, Appendix B; Miyato and Koyama 2018,
    arXiv:1802.05637.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        num_classes: int,
        img_channels: int = 3,
        channels: int = 64,
        widths: Sequence[int] | None = None,
        wide: bool = True,
        attn_resolutions: Sequence[int] = (),
        official_attention_table: bool = False,
        num_svs: int = 1,
        num_itrs: int = 1,
        sn_eps: float = 1e-6,
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, img_channels=img_channels, channels=channels)
        multiples = widths_for(img_resolution, DISCRIMINATOR_WIDTHS, widths)
        block_widths = [channels * multiple for multiple in multiples]
        num_halves = 2 if img_resolution == 32 else len(block_widths) - 1
        halves = [index < num_halves for index in range(len(block_widths))]
        resolutions = discriminator_resolutions(img_resolution, halves, official_attention_table)
        attention = check_attention(attn_resolutions, resolutions)
        layers = Layers(num_svs=num_svs, num_itrs=num_itrs, eps=sn_eps)
        self.num_classes = num_classes

        self.blocks = nn.ModuleList()
        previous = img_channels
        for index, (width, resolution) in enumerate(zip(block_widths, resolutions, strict=True)):
            block = DiscriminatorBlock(
                previous, width, layers, wide=wide, first=index == 0, halve=halves[index]
            )
            stage = Stage([block])
            if resolution in attention:
                stage.append(SelfAttention(width, layers))
            self.blocks.append(stage)
            previous = width
        self.linear = layers.linear(previous, 1)
        self.embed = layers.embedding(num_classes, previous)
        draw_weights(self, init)

    @override
    def forward(
        self, x: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, "B 1"]:
        for stage in self.blocks:
            x = stage(x)
        return project(x, labels, self.linear, self.embed)

    @override
    def layout(self) -> Layout:
        return gan_layout(self, tables=[projection_table(self.embed)], last=["linear"])
