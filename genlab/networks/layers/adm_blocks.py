"""The parts of ADM's U-Net and of its noisy classifier: blocks, and the encoder half.

Module paths and parameter names are those of the official checkpoints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks.base import check_positive
from genlab.networks.layers.edm_blocks import scaled_and_shifted
from genlab.networks.layers.initialised import Conv2d, Images, Init, Linear
from genlab.networks.layers.noise_embeddings import time_features
from genlab.networks.layers.resampling import Direction
from genlab.networks.layout import (
    Branch,
    ClassTable,
    Layout,
    ModulatedNorm,
    Parts,
    build_layout,
)

KAIMING = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
ZERO = Init("kaiming_uniform", weight=0.0)
GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class ADMStyle:
    """What all blocks of one network have in common.

    Attributes:
        embedding_channels: width of the timestep-and-class embedding.
        dropout: probability of dropping a feature before the second convolution, in training.
        scale_shift: whether the embedding scales and shifts the second normalisation or is added
            before it.
        resblock_updown: whether residual blocks resample (BigGAN's way).
        conv_resample: whether resampling without them has a convolution.
        new_attention_order: how the channels of queries, keys and values are ordered, see `attend`.
        num_heads: attention heads.
        num_head_channels: width of a head; overrules ``num_heads`` where it is given.
    """

    embedding_channels: int
    dropout: float
    scale_shift: bool
    resblock_updown: bool
    conv_resample: bool
    new_attention_order: bool
    num_heads: int
    num_head_channels: int | None

    def heads(self, channels: int) -> int:
        """Attention heads over ``channels``.

        Raises:
            ConfigError: they cannot be split evenly.
        """
        split = self.num_heads if self.num_head_channels is None else self.num_head_channels
        if channels % split:
            raise ConfigError(
                f"{channels} channels cannot be split evenly by num_heads or num_head_channels = "
                f"{split}; choose a divisor of every width that attends"
            )
        return split if self.num_head_channels is None else channels // split


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation over 32 groups, as everywhere in ADM.

    Raises:
        ConfigError: the channels are no multiple of 32.
    """
    if channels % GROUPS:
        raise ConfigError(
            f"ADM normalises over {GROUPS} groups, but a layer has {channels} channels; choose "
            f"model_channels and channel_mult to give multiples of {GROUPS}"
        )
    return nn.GroupNorm(GROUPS, channels, eps=1e-5)


class EmbedSequential(nn.Sequential):
    """Layers in a row, of which residual blocks also see the embedding."""

    def forward(  # type: ignore[override]  # torch's takes one input
        self, x: Images, embedding: Float[Tensor, "#B E"]
    ) -> Float[Tensor, "B D h w"]:
        """Features and embedding -> features."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x

    def parts(self, path: str) -> Parts:
        """What these layers, standing at ``path``, add to their network's `Layout`."""
        branches: list[Branch] = []
        modulated: list[ModulatedNorm] = []
        modules: dict[str, tuple[str, ...]] = {}
        for number, layer in enumerate(self):
            if isinstance(layer, ResBlock | AttentionBlock):
                part = layer.parts(f"{path}.{number}", block=path)
                branches += part.branches
                modulated += part.modulated
                for group, members in part.modules.items():
                    modules[group] = (*modules.get(group, ()), *members)
        return Parts(branches=tuple(branches), modulated=tuple(modulated), modules=modules)


class Downsample(nn.Module):
    """Half the height and width, by a strided convolution or by means of 2x2 pixels."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.AvgPool2d(2)
        if learned:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Images) -> Float[Tensor, "B C h w"]:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Twice the height and width: each pixel four times, then perhaps a convolution."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, init=KAIMING) if learned else None

    def forward(self, x: Images) -> Float[Tensor, "B C h w"]:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        x = _resample(x, "up")
        return x if self.conv is None else self.conv(x)


class ResBlock(nn.Module):
    """Normalise, convolve, add the embedding, normalise, convolve, add the skip path.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        style: what all blocks of the network share.
        direction: resample between the first normalisation and its convolution, and on the skip
            path, without weights.

    Attributes:
        gamma: factors of the convolutions' output, (D,), as DiffFit trains them; None (as built)
            multiplies by nothing.

    Source: Dhariwal and Nichol (arXiv:2105.05233), Section 3.
    """

    gamma: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: ADMStyle,
        direction: Direction | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.scale_shift = style.scale_shift
        self.direction = direction
        self.in_layers = nn.Sequential(
            group_norm(in_channels), nn.SiLU(), Conv2d(in_channels, out_channels, 3, init=KAIMING)
        )
        affine_channels = 2 * out_channels if style.scale_shift else out_channels
        self.emb_layers = nn.Sequential(
            nn.SiLU(), Linear(style.embedding_channels, affine_channels, init=KAIMING)
        )
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(style.dropout),
            Conv2d(out_channels, out_channels, 3, init=ZERO),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip_connection = Conv2d(in_channels, out_channels, 1, init=KAIMING)
        self.register_parameter("gamma", None)

    def forward(self, x: Images, embedding: Float[Tensor, "#B E"]) -> Float[Tensor, "B D h w"]:
        """Features (B, C, H, W) and embedding (B, E) -> features (B, D, H', W')."""
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.direction is not None:
            h, x = _resample(h, self.direction), _resample(x, self.direction)
        h = conv(h)
        params = self.emb_layers(embedding).to(h.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = params.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers[0](h), scale + 1)
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + params)
        return add_branch(self.skip_connection(x), h, self.gamma)

    def parts(self, path: str, block: str) -> Parts:
        """What this part of a block adds to its network's `Layout`."""
        branch = Branch(
            block=block,
            kind="convolution",
            layer=f"{path}.out_layers.3",
            width=self.out_channels,
            scale=f"{path}.gamma",
        )
        modulated = scaled_and_shifted(
            f"{path}.out_layers.0", f"{path}.emb_layers.1", self.out_channels
        )
        return Parts(
            branches=(branch,),
            modulated=(modulated,) if self.scale_shift else (),
            modules={
                "convolution": (f"{path}.in_layers", f"{path}.out_layers"),
                "modulation": (f"{path}.emb_layers",),
            },
        )


def add_branch(
    x: Images, h: Float[Tensor, "B D h w"], gamma: Float[Tensor, " D"] | None
) -> Float[Tensor, "B D h w"]:
    """``x + gamma h``."""
    if gamma is None:
        return x + h
    return torch.addcmul(x, h, gamma.to(h.dtype)[:, None, None])  # under autocast they differ


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input.

    Args:
        channels: width.
        num_heads: heads, of equal width.
        new_order: how the channels of ``qkv`` are ordered, see `attend`.

    Attributes:
        gamma: factors of its output, see `ResBlock`.
    """

    gamma: Tensor | None

    def __init__(self, channels: int, num_heads: int, *, new_order: bool) -> None:
        super().__init__()
        self.channels = channels
        self.num_heads = num_heads
        self.new_order = new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)  # type: ignore[arg-type]  # there is one
        self.register_parameter("gamma", None)

    def forward(self, x: Images) -> Float[Tensor, "B C H W"]:
        """(B, C, H, W) -> the same."""
        qkv = self.qkv(self.norm(x).flatten(2))
        h = attend(qkv, self.num_heads, new_order=self.new_order)
        return add_branch(x, self.proj_out(h).reshape(x.shape), self.gamma)

    def parts(self, path: str, block: str) -> Parts:
        """The parts of this layer for a `Layout`; ``path`` is its name in the network."""
        branch = Branch(
            block=block,
            kind="attention",
            layer=f"{path}.proj_out",
            width=self.channels,
            scale=f"{path}.gamma",
        )
        return Parts(branches=(branch,), modules={"attention": (path,)})


def attend(
    qkv: Float[Tensor, "B C3 N"], num_heads: int, *, new_order: bool
) -> Float[Tensor, "B C N"]:
    """Attention over N positions.

    Args:
        qkv: queries, keys and values, 3 C channels. In the legacy order each head has its own
            queries, keys and values side by side; in the new one all heads' queries come first.
        num_heads: heads, of equal width.
        new_order: which of the two orders it is.
    """
    layout = "(t h c)" if new_order else "(h t c)"
    q, k, v = rearrange(qkv, f"b {layout} n -> t b h n c", h=num_heads, t=3).contiguous()
    h = F.scaled_dot_product_attention(q, k, v)
    return rearrange(h, "b h n c -> b (h c) n")


@dataclass(frozen=True)
class Halves:
    """What `encoder` builds.

    Attributes:
        input_blocks: the downward half, one output each.
        middle_block: the bottom.
        widths: channels of each output of ``input_blocks``.
    """

    input_blocks: nn.ModuleList
    middle_block: EmbedSequential
    widths: list[int]


def encoder(
    in_channels: int,
    widths: Sequence[int],
    resolutions: Sequence[int],
    num_blocks: int,
    attn_resolutions: Sequence[int],
    style: ADMStyle,
) -> Halves:
    """Build the downward half and the middle of the network.

    Args:
        in_channels: of the network.
        widths: channels of each level, finest first.
        resolutions: height and width of each level.
        num_blocks: residual blocks of each level.
        attn_resolutions: resolutions with attention.
        style: what all blocks share.
    """
    width, outputs = widths[0], [widths[0]]
    blocks = [EmbedSequential(Conv2d(in_channels, width, 3, init=KAIMING))]
    for res, next_width in zip(resolutions, widths, strict=True):
        for _ in range(num_blocks):
            blocks.append(block(width, next_width, style, attention=res in attn_resolutions))
            width = next_width
            outputs.append(width)
        if res != resolutions[-1]:
            blocks.append(EmbedSequential(resampler(width, style, "down")))
            outputs.append(width)
    middle = EmbedSequential(
        ResBlock(width, width, style), attention_block(width, style), ResBlock(width, width, style)
    )
    return Halves(nn.ModuleList(blocks), middle, outputs)


def block(
    in_channels: int, out_channels: int, style: ADMStyle, *, attention: bool
) -> EmbedSequential:
    """A residual block, and attention where it is wanted."""
    layers: list[nn.Module] = [ResBlock(in_channels, out_channels, style)]
    if attention:
        layers.append(attention_block(out_channels, style))
    return EmbedSequential(*layers)


def attention_block(channels: int, style: ADMStyle) -> AttentionBlock:
    """Attention with the network's heads."""
    return AttentionBlock(channels, style.heads(channels), new_order=style.new_attention_order)


def resampler(channels: int, style: ADMStyle, direction: Direction) -> nn.Module:
    """What leads from one level to the next."""
    if style.resblock_updown:
        return ResBlock(channels, channels, style, direction)
    kind = Downsample if direction == "down" else Upsample
    return kind(channels, style.conv_resample)


def level_widths(model_channels: int, channel_mult: Sequence[float]) -> list[int]:
    """Channels of each level, finest first; multiples need not be whole (ADM at 512 has 0.5)."""
    check_positive(model_channels=model_channels)
    if not channel_mult or any(mult <= 0 for mult in channel_mult):
        raise ConfigError(f"channel_mult must be made of numbers above 0, got {channel_mult!r}")
    return [int(mult * model_channels) for mult in channel_mult]


class TimeEmbedding(nn.Sequential):
    """Sines and cosines of the timestep, then two layers."""

    def __init__(self, model_channels: int) -> None:
        width = 4 * model_channels
        super().__init__(
            Linear(model_channels, width, init=KAIMING),
            nn.SiLU(),
            Linear(width, width, init=KAIMING),
        )
        self.features = model_channels

    def embed(self, t: Float[Tensor, " #B"]) -> Float[Tensor, "#B E"]:
        """Embed; the phases are taken in float32 whatever the layers compute in."""
        dtype = next(self.parameters()).dtype
        embedding: Tensor = self(time_features(t, self.features).to(dtype))
        return embedding


def unet_layout(network: nn.Module, tables: Sequence[ClassTable] = ()) -> Layout:
    """The layout of ADM's U-Net and of its downward half, with an output called ``out``.

    Args:
        network: the network.
        tables: its class tables.
    """
    stages = {
        path: stage.parts(path)
        for path, stage in network.named_modules()
        if isinstance(stage, EmbedSequential)
    }
    blocks = {path: part for path, part in stages.items() if part.branches}
    return build_layout(
        network,
        blocks=list(blocks),
        parts=list(blocks.values()),
        tables=tables,
        modules={"time": ["time_embed"], "last": ["out"]},
    )


def _resample(x: Images, direction: Direction) -> Float[Tensor, "B C h w"]:
    if direction == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
