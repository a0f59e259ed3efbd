"""The residual block of EDM's U-Nets, with optional resampling and self-attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks.base import DiffusionNetwork
from genlab.networks.layers.initialised import Conv2d, Images, Init, Linear
from genlab.networks.layers.resampling import Direction, Resampling, filter_2d
from genlab.networks.layout import (
    LINEAR_LAYERS,
    Branch,
    ClassTable,
    Layout,
    ModulatedNorm,
    Parts,
    Rows,
    build_layout,
)


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """What all blocks of one network have in common.

    Attributes:
        embedding_channels: width of the noise-and-class embedding.
        dropout: probability of dropping a feature before the second convolution, in training.
        eps: of the group normalisations.
        skip_scale: factor after each residual sum, sqrt(1/2) keeps the variance.
        scale_shift: whether the embedding scales and shifts the second normalisation (ADM) or is
            added before it.
        project_resampled: whether the skip path of a resampling block has a 1x1 convolution
            although the width stays the same.
        channels_per_head: width of an attention head; None means one head over all channels.
        taps: the resampling filter.
        init: of ordinary layers.
        init_last: of the last layer of each residual branch.
        init_attention: of queries, keys and values.
    """

    embedding_channels: int
    dropout: float
    eps: float
    skip_scale: float
    scale_shift: bool
    project_resampled: bool
    channels_per_head: int | None
    taps: Sequence[float]
    init: Init
    init_last: Init
    init_attention: Init

    def num_heads(self, channels: int) -> int:
        """Attention heads over ``channels``; 0 where a head does not fit (ADM below 64 channels).

        Raises:
            ConfigError: the channels cannot be split evenly among the heads.
        """
        if self.channels_per_head is None:
            return 1
        heads = channels // self.channels_per_head
        if heads and channels % heads:
            raise ConfigError(
                f"{channels} channels cannot be split evenly among {heads} attention heads of "
                f"about {self.channels_per_head}; choose model_channels and channel_mult to give a "
                f"multiple of {self.channels_per_head}, or leave that level out of attn_resolutions"
            )
        return heads


class UNetBlock(nn.Module):
    """Normalise, convolve, add the embedding, normalise, convolve, add the skip path; then attend.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        style: what all blocks of the network share.
        direction: resample before the first convolution and on the skip path.
        attention: whether to attend over all pixels at the end, if a head fits.

    Attributes:
        gamma_conv: factors of the convolutions' output, (D,), as DiffFit trains them; None (as
            built) multiplies by nothing.
        gamma_attn: the same of the attention's.

    Source: Karras et al. 2022, arXiv:2206.00364, Appendix F.2; the block is the union of those of
    DDPM++, NCSN++ and ADM.
    """

    gamma_conv: Tensor | None
    gamma_attn: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        direction: Direction | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.skip_scale = style.skip_scale
        self.scale_shift = style.scale_shift
        self.num_heads = style.num_heads(out_channels) if attention else 0
        self.resample = Resampling(direction, style.taps) if direction else None

        self.norm0 = group_norm(in_channels, style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, init=style.init)
        affine_channels = 2 * out_channels if style.scale_shift else out_channels
        self.affine = Linear(style.embedding_channels, affine_channels, init=style.init)
        self.norm1 = group_norm(out_channels, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=style.init_last)

        self.skip: nn.Module | None = None
        if in_channels != out_channels or (direction and style.project_resampled):
            self.skip = Conv2d(in_channels, out_channels, 1, init=style.init)
        elif direction:
            self.skip = nn.Identity()
        if direction and self.skip is not None:  # where the checkpoints have the filter
            self.conv0.register_buffer("resample_filter", filter_2d(style.taps))
            self.skip.register_buffer("resample_filter", filter_2d(style.taps))

        if self.num_heads:
            self.norm2 = group_norm(out_channels, style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, init=style.init_attention)
            self.proj = Conv2d(out_channels, out_channels, 1, init=style.init_last)
        self.register_parameter("gamma_conv", None)
        self.register_parameter("gamma_attn", None)

    def forward(self, x: Images, embedding: Float[Tensor, "#B E"]) -> Float[Tensor, "B D h w"]:
        """Features (B, C, H, W) and embedding (B, E) -> features (B, D, H', W')."""
        h = _silu(self.norm0(x))
        h = self.conv0(h if self.resample is None else self.resample(h))
        params = self.affine(embedding).to(h.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = params.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h.add_(params))
        h = self.conv1(self.dropout(_silu(h)))
        x = x if self.resample is None else self.resample(x)
        x = self._residual(x if self.skip is None else self.skip(x), h, self.gamma_conv)
        return self._residual(x, self._attend(x), self.gamma_attn) if self.num_heads else x

    def _residual(self, x: Tensor, h: Tensor, gamma: Tensor | None) -> Tensor:
        if gamma is not None:
            h = h * gamma.to(h.dtype)[:, None, None]  # under autocast they differ
        h = h.add_(x)
        return h if self.skip_scale == 1 else h.mul_(self.skip_scale)

    def parts(self, path: str) -> Parts:
        """What this block, standing at ``path``, adds to its network's `Layout`."""
        width = self.out_channels
        branches = [
            Branch(
                block=path,
                kind="convolution",
                layer=f"{path}.conv1",
                width=width,
                scale=f"{path}.gamma_conv",
            )
        ]
        inside = {
            "convolution": tuple(f"{path}.{name}" for name in ("norm0", "conv0", "norm1", "conv1")),
            "modulation": (f"{path}.affine",),
        }
        if self.num_heads:
            branches.append(
                Branch(
                    block=path,
                    kind="attention",
                    layer=f"{path}.proj",
                    width=width,
                    scale=f"{path}.gamma_attn",
                )
            )
            inside["attention"] = tuple(f"{path}.{name}" for name in ("norm2", "qkv", "proj"))
        modulated = scaled_and_shifted(f"{path}.norm1", f"{path}.affine", width)
        return Parts(
            branches=tuple(branches),
            modulated=(modulated,) if self.scale_shift else (),
            modules=inside,
        )

    def _attend(self, x: Tensor) -> Tensor:
        # Official channel order of qkv: (head, channel within head, q/k/v), q/k/v fastest.
        qkv = self.qkv(self.norm2(x))
        qkv = rearrange(qkv, "b (h c t) y x -> t b h (y x) c", h=self.num_heads, t=3)
        # Fused kernels want adjacent channels; left to itself, torch falls back to its slowest one.
        q, k, v = qkv.contiguous()
        h = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(h, "b h (y x) c -> b (h c) y x", y=x.shape[2]))


def unet_layout(
    network: DiffusionNetwork,
    *,
    last: Sequence[str],
    layers: tuple[type[nn.Module], ...] = LINEAR_LAYERS,
    class_scale: float = 1.0,
) -> Layout:
    """The layout of EDM's U-Nets: blocks, and the embedding layers called ``map_...``.

    Args:
        network: the network.
        last: paths of its output layers and their normalisations.
        layers: see `build_layout`.
        class_scale: see `ClassTable.scale`.
    """
    blocks = {
        path: block.parts(path)
        for path, block in network.named_modules()
        if isinstance(block, UNetBlock)
    }
    table = ClassTable(layer="map_label", axis=1, scale=class_scale)
    return build_layout(
        network,
        blocks=list(blocks),
        parts=list(blocks.values()),
        tables=[table] if network.label_dim else [],
        modules={"time": ["map_noise", "map_layer0", "map_layer1"], "last": last},
        layers=layers,
    )


def scaled_and_shifted(norm: str, layer: str, width: int) -> ModulatedNorm:
    """A normalisation whose scale and shift are the first and second half of a layer's output."""
    return ModulatedNorm(
        norm=norm,
        scale=Rows(layer=layer, start=0, stop=width),
        shift=Rows(layer=layer, start=width, stop=2 * width),
    )


def _silu(x: Tensor) -> Tensor:
    # In place: x is always a fresh result that is read nowhere else; autograd copies where it must.
    return F.silu(x, inplace=True)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with EDM's number of groups, min(32, channels // 4).

    Raises:
        ConfigError: the channels cannot be split into that many groups.
    """
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        cure = "at least 4 channels" if groups == 0 else f"a multiple of {groups} there"
        raise ConfigError(
            f"a normalisation over {channels} channels (skip connections included) cannot be split "
            f"into {max(groups, 1)} equal groups of 4 or more; choose model_channels and "
            f"channel_mult to give {cure}"
        )
    return nn.GroupNorm(groups, channels, eps=eps)
