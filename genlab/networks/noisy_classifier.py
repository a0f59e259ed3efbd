"""ADM's noisy classifier: the class of an image that is still full of noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.choices import check_choice
from genlab.networks.as_model import register_to_config
from genlab.networks.base import (
    Network,
    check_patches,
    check_positive,
    level_resolutions,
)
from genlab.networks.layers.adm_blocks import (
    KAIMING,
    ZERO,
    ADMStyle,
    TimeEmbedding,
    attend,
    encoder,
    group_norm,
    level_widths,
    unet_layout,
)
from genlab.networks.layers.initialised import Conv2d, Images, Linear
from genlab.networks.layout import Layout

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
HIDDEN = 2048


class ADMClassifier(Network):
    """The downward half of ADM's U-Net with a head that names the class.

    Args:
        img_resolution: height and width of the images.
        in_channels: channels of the images.
        num_classes: outputs, >= 2.
        model_channels: base width.
        channel_mult: width of each level in multiples of ``model_channels``, finest first.
        num_blocks: residual blocks at each level.
        attn_resolutions: resolutions with self-attention, in pixels; the bottom always has it.
        dropout: probability of dropping a feature in training.
        num_heads: attention heads.
        num_head_channels: width of a head, in place of ``num_heads``; the attention pool needs it.
        scale_shift: see `ADMUNet`.
        resblock_updown: see `ADMUNet`.
        conv_resample: see `ADMUNet`.
        new_attention_order: see `ADMUNet`.
        pool: ``attention`` (a token that reads the last feature map, ADM's choice), ``adaptive``
            (its mean), ``spatial`` or ``spatial_v2`` (means of the feature maps of all blocks,
            then two layers).
        patch_size: side of the pixel blocks that are folded into channels before the network
            (GenLab's own; 1 = off, the official network). ``attn_resolutions`` refer to the smaller
            grid.

    Source: arXiv:2105.05233, Section 4 and Table 12.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        num_classes: int,
        model_channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_blocks: int = 2,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.0,
        num_heads: int = 1,
        num_head_channels: int | None = 64,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        conv_resample: bool = True,
        new_attention_order: bool = False,
        pool: str = "attention",
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            in_channels=in_channels,
            num_classes=num_classes,
            num_blocks=num_blocks,
            num_heads=num_heads,
            patch_size=patch_size,
        )
        check_choice("pool", pool, POOLS)
        self.num_classes = num_classes
        self.pool = pool
        widths = level_widths(model_channels, channel_mult)
        check_patches(patch_size, img_resolution=img_resolution)
        self.patch_size = patch_size
        size = img_resolution // patch_size
        levels = level_resolutions(size, len(widths), "img_resolution / patch_size")
        style = ADMStyle(
            embedding_channels=4 * model_channels,
            dropout=dropout,
            scale_shift=scale_shift,
            resblock_updown=resblock_updown,
            conv_resample=conv_resample,
            new_attention_order=new_attention_order,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
        )
        self.time_embed = TimeEmbedding(model_channels)
        half = encoder(
            in_channels * patch_size**2, widths, levels, num_blocks, attn_resolutions, style
        )
        self.input_blocks, self.middle_block = half.input_blocks, half.middle_block
        self.out = _head(pool, num_classes, half.widths, levels[-1], style)

    def forward(self, x: Images, c_noise: Float[Tensor, " #B"]) -> Float[Tensor, "B K"]:
        """Logits of the classes.

        Args:
            x: scaled noisy images c_in * x.
            c_noise: the noise level, scaled by the preconditioning.
        """
        embedding = self.time_embed.embed(c_noise)
        x = F.pixel_unshuffle(x, self.patch_size)
        means = []
        for stage in self.input_blocks:
            x = stage(x, embedding)
            means.append(x.mean((2, 3)))
        x = self.middle_block(x, embedding)
        if not self.pool.startswith("spatial"):
            return self.out(x)
        return self.out(torch.cat([*means, x.mean((2, 3))], dim=1))

    @override
    def layout(self) -> Layout:
        return unet_layout(self)


def _head(
    pool: str, num_classes: int, widths: Sequence[int], size: int, style: ADMStyle
) -> nn.Sequential:
    last, all_blocks = widths[-1], sum(widths) + widths[-1]
    if pool == "attention":
        head = AttentionPool(last, size, style.heads(last), num_classes)
        return nn.Sequential(group_norm(last), nn.SiLU(), head)
    if pool == "adaptive":
        pixelwise = Conv2d(last, num_classes, 1, init=ZERO)
        return nn.Sequential(
            group_norm(last), nn.SiLU(), nn.AdaptiveAvgPool2d(1), pixelwise, nn.Flatten()
        )
    first = Linear(all_blocks, HIDDEN, init=KAIMING)
    classify = Linear(HIDDEN, num_classes, init=KAIMING)
    if pool == "spatial":
        return nn.Sequential(first, nn.ReLU(), classify)
    return nn.Sequential(first, group_norm(HIDDEN), nn.SiLU(), classify)


class AttentionPool(nn.Module):
    """A token that starts as the mean of all pixels, reads them by attention, and is classified.

    Args:
        channels: width of the feature map.
        size: its height and width.
        num_heads: attention heads.
        out_channels: width of the output.

    Source: CLIP (arXiv:2103.00020), Section 2.4, as ADM has it.
    """

    def __init__(self, channels: int, size: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Images) -> Float[Tensor, "B K"]:
        """(B, C, size, size) -> (B, out_channels)."""
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], dim=2)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        # The new order, whatever the blocks of the network have.
        h = attend(self.qkv_proj(tokens), self.num_heads, new_order=True)
        return self.c_proj(h[:, :, :1])[:, :, 0]
