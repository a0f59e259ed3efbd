"""BigGAN-deep: bottleneck blocks, two at each resolution, and the whole latent for each of them.

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

from genlab.networks.as_model import register_to_config
from genlab.networks.base import Labels, check_positive
from genlab.networks.biggan import (
    GENERATOR_WIDTHS,
    discriminator_resolutions,
    generator_resolutions,
)
from genlab.networks.gan_base import (
    BOTTOM,
    DiscriminatorNetwork,
    GeneratorNetwork,
    check_attention,
    widths_for,
)
from genlab.networks.layers.gan_layers import (
    ConditionalBatchNorm,
    Features,
    Init,
    ResidualBlock,
    SelfAttention,
    Stage,
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

DISCRIMINATOR_WIDTHS = {
    32: (4, 4, 4),
    64: (2, 4, 8, 16),
    128: (2, 4, 8, 16, 16),
    256: (2, 4, 8, 8, 16, 16),
}
"""Output width of each stage; all of them halve the resolution, but for the last at 32 pixels."""

REDUCTION = 4
"""How much narrower a block is inside."""


class DeepGeneratorBlock(ResidualBlock):
    """BN, ReLU, 1x1; BN, ReLU, (doubling), 3x3; BN, ReLU, 3x3; BN, ReLU, 1x1.

    The shortcut keeps the first channels: it has no weights.

    Args:
        in_channels: C.
        out_channels: D, at most C.
        layers: makes the convolutions.
        norm: makes a normalisation of a given width.
        doubles: whether height and width are doubled.
    """

    convolutions = ("conv1", "conv2", "conv3", "conv4")
    conditional_norms = ("bn1", "bn2", "bn3", "bn4")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: Layers,
        norm: Callable[[int], nn.Module],
        *,
        doubles: bool,
    ) -> None:
        super().__init__()
        hidden = in_channels // REDUCTION
        self.out_channels = out_channels
        self.doubles = doubles
        self.conv1 = layers.conv(in_channels, hidden, 1)
        self.conv2 = layers.conv(hidden, hidden)
        self.conv3 = layers.conv(hidden, hidden)
        self.conv4 = layers.conv(hidden, out_channels, 1)
        self.bn1 = norm(in_channels)
        self.bn2 = norm(hidden)
        self.bn3 = norm(hidden)
        self.bn4 = norm(hidden)

    def forward(self, x: Features, *condition: Tensor) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, H, W), or twice as high and wide.

        Args:
            x: features.
            condition: what the normalisations take besides them.
        """
        h = self.conv1(F.relu(self.bn1(x, *condition), inplace=True))
        h = F.relu(self.bn2(h, *condition), inplace=True)
        h = self.conv2(upsample(h) if self.doubles else h)
        h = self.conv3(F.relu(self.bn3(h, *condition), inplace=True))
        h = self.conv4(F.relu(self.bn4(h, *condition), inplace=True))
        x = x[:, : self.out_channels]
        return h + (upsample(x) if self.doubles else x)


class BigGANDeepGenerator(GeneratorNetwork):
    """BigGAN-deep's generator.

    Args:
        img_resolution: height and width of the images: 32, 64, 128, 256 or 512.
        num_classes: number of classes.
        img_channels: channels of the images.
        channels: base width; the blocks have multiples of it.
        depth: blocks at each resolution; the last one doubles it.
        dim_z: numbers in a latent.
        attn_resolutions: output resolutions of stages that self-attention follows.
        shared_dim: width of the class embedding; None is ``dim_z``.
        own_batch_norm: whether running variances are biased ones (see `Statistics`).
        bn_eps: added to variances, but for the last normalisation.
        spectral_norm: whether convolutions and linear layers are spectrally normalised; the class
            embedding never is.
        num_svs: singular values tracked.
        num_itrs: rounds of power iteration in a training call.
        sn_eps: see `Layers`.
        init: how weights are drawn: "orthogonal", "normal" (0.02) or "xavier".

    Source: Brock et al. 2018, arXiv:1809.11096, Figure 16 and Appendix B. Departure from
    BigGAN-PyTorch: with more than two blocks at a resolution the last one changes the width, not
    every one after the first, which there fails where the widths differ.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        num_classes: int,
        img_channels: int = 3,
        channels: int = 64,
        depth: int = 2,
        dim_z: int = 128,
        attn_resolutions: Sequence[int] = (),
        shared_dim: int | None = None,
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
            depth=depth,
            dim_z=dim_z,
            shared_dim=shared_dim,
        )
        multiples = widths_for(img_resolution, GENERATOR_WIDTHS)
        resolutions = generator_resolutions(len(multiples))
        attention = check_attention(attn_resolutions, resolutions)
        self.dim_z = dim_z
        self.num_classes = num_classes
        kind: Literal["power", "none"] = "power" if spectral_norm else "none"
        layers = Layers(norm=kind, num_svs=num_svs, num_itrs=num_itrs, eps=sn_eps)
        condition_dim = shared_dim + dim_z
        make = partial(layers.linear, condition_dim, bias=False)
        norm = partial(ConditionalBatchNorm, make=make, eps=bn_eps, own=own_batch_norm)
        widths = [channels * multiple for multiple in multiples]

        self.shared = nn.Embedding(num_classes, shared_dim)
        self.linear = layers.linear(condition_dim, widths[0] * BOTTOM**2)
        self.blocks = nn.ModuleList()
        for width, next_width, resolution in zip(
            [widths[0], *widths], widths, resolutions, strict=False
        ):
            for index in range(depth):
                last = index == depth - 1
                block = DeepGeneratorBlock(
                    width, next_width if last else width, layers, norm, doubles=last
                )
                stage = Stage([block])
                self.blocks.append(stage)
            if resolution in attention:
                stage.append(SelfAttention(next_width, layers))
        self.output_layer = output_layer(
            widths[-1], img_channels, layers, own_batch_norm=own_batch_norm
        )
        draw_weights(self, init)

    @override
    def embed_labels(self, labels: Labels) -> Float[Tensor, "B E"] | Int64[Tensor, " B"]:
        return embed_shared(self.shared, labels)

    @override
    def forward(
        self, z: Float[Tensor, "B Z"], class_embedding: Float[Tensor, "B E"] | Int64[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        condition = torch.cat([class_embedding, z], dim=1)
        h = self.linear(condition).unflatten(1, (-1, BOTTOM, BOTTOM))
        for stage in self.blocks:
            h = stage(h, condition)
        return self.output_layer(h).tanh()

    @override
    def layout(self) -> Layout:
        return gan_layout(self, tables=[ClassTable(layer="shared")], last=["output_layer"])


class DeepDiscriminatorBlock(ResidualBlock):
    """ReLU, 1x1; ReLU, 3x3; ReLU, 3x3; ReLU, (halving), 1x1.

    The shortcut keeps all channels and adds new ones by a 1x1 convolution of them.
    """

    convolutions = ("conv1", "conv2", "conv3", "conv4")

    def __init__(self, in_channels: int, out_channels: int, layers: Layers, *, halve: bool) -> None:
        super().__init__()
        hidden = out_channels // REDUCTION
        self.out_channels = out_channels
        self.halve = halve
        self.conv1 = layers.conv(in_channels, hidden, 1)
        self.conv2 = layers.conv(hidden, hidden)
        self.conv3 = layers.conv(hidden, hidden)
        self.conv4 = layers.conv(hidden, out_channels, 1)
        new = out_channels - in_channels
        self.conv_sc = layers.conv(in_channels, new, 1) if new else None

    def forward(self, x: Features) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, H, W), or half of it."""
        h = self.conv1(F.relu(x))
        h = self.conv2(F.relu(h, inplace=True))
        h = F.relu(self.conv3(F.relu(h, inplace=True)), inplace=True)
        h, x = (F.avg_pool2d(t, 2) if self.halve else t for t in (h, x))
        shortcut = x if self.conv_sc is None else torch.cat([x, self.conv_sc(x)], dim=1)
        return self.conv4(h) + shortcut


class BigGANDeepDiscriminator(DiscriminatorNetwork):
    """BigGAN-deep's projection discriminator.

    Args:
        img_resolution: height and width of the images: 32, 64, 128 or 256.
        num_classes: number of classes.
        img_channels: channels of the images.
        channels: base width; the stages have multiples of it (`DISCRIMINATOR_WIDTHS`).
        depth: blocks at each resolution; the first one halves it.
        attn_resolutions: output resolutions of stages that self-attention follows.
        official_attention_table: whether at 32 pixels ``attn_resolutions`` is looked up in the
            official table, which says 16 for every stage, although they put out 16, 8 and 8.
        num_svs: singular values tracked.
        num_itrs: rounds of power iteration in a training call.
        sn_eps: see `Layers`.
        init: how weights are drawn: "orthogonal", "normal" (0.02) or "xavier".

    Source: Brock et al. 2018, arXiv:1809.11096, Figure 16 and Appendix B.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        num_classes: int,
        img_channels: int = 3,
        channels: int = 64,
        depth: int = 2,
        attn_resolutions: Sequence[int] = (),
        official_attention_table: bool = False,
        num_svs: int = 1,
        num_itrs: int = 1,
        sn_eps: float = 1e-6,
        init: Init = "orthogonal",
    ) -> None:
        super().__init__()
        check_positive(
            num_classes=num_classes,
            img_channels=img_channels,
            channels=channels,
            depth=depth,
        )
        widths = [
            channels * multiple for multiple in widths_for(img_resolution, DISCRIMINATOR_WIDTHS)
        ]
        num_halves = 2 if img_resolution == 32 else len(widths)
        halves = [index < num_halves for index in range(len(widths))]
        resolutions = discriminator_resolutions(img_resolution, halves, official_attention_table)
        attention = check_attention(attn_resolutions, resolutions)
        layers = Layers(num_svs=num_svs, num_itrs=num_itrs, eps=sn_eps)
        self.num_classes = num_classes

        previous = widths[0] if img_resolution == 32 else channels
        self.input_conv = layers.conv(img_channels, previous)
        self.blocks = nn.ModuleList()
        for width, resolution, halve in zip(widths, resolutions, halves, strict=True):
            stage = Stage()
            for index in range(depth):
                first = index == 0
                stage.append(
                    DeepDiscriminatorBlock(
                        previous if first else width, width, layers, halve=halve and first
                    )
                )
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
        h = self.input_conv(x)
        for stage in self.blocks:
            h = stage(h)
        return project(h, labels, self.linear, self.embed)

    @override
    def layout(self) -> Layout:
        return gan_layout(self, tables=[projection_table(self.embed)], last=["linear"])
