"""ADM, the U-Net of guided-diffusion (Dhariwal and Nichol 2021)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.as_model import register_to_config
from genlab.networks.base import (
    DiffusionNetwork,
    check_positive,
    level_resolutions,
)
from genlab.networks.layers.adm_blocks import (
    ZERO,
    ADMStyle,
    EmbedSequential,
    TimeEmbedding,
    block,
    encoder,
    group_norm,
    level_widths,
    resampler,
    unet_layout,
)
from genlab.networks.layers.class_embedding import look_up, mix_rows
from genlab.networks.layers.initialised import Conv2d, Images
from genlab.networks.layout import ClassTable, Layout


class ADMUNet(DiffusionNetwork):
    """ADM's own U-Net, as guided-diffusion publishes it; `DhariwalUNet` is EDM's version.

    A class is a row of a table, added to the embedding of the timestep; no class adds nothing,
    which the official models were never trained for.

    Args:
        img_resolution: height and width of the images.
        in_channels: channels of the images.
        out_channels: channels of the output: twice the image's where a variance is predicted.
        label_dim: number of classes, 0 = unconditional.
        model_channels: base width.
        channel_mult: width of each level in multiples of ``model_channels``, finest first.
        num_blocks: residual blocks at each encoder level; the decoder has one more.
        attn_resolutions: resolutions with self-attention, in pixels (guided-diffusion counts in
            factors of downsampling); the bottom always has it.
        dropout: probability of dropping a feature in training.
        num_heads: attention heads.
        num_head_channels: width of a head, in place of ``num_heads``.
        num_heads_upsample: heads of the decoder where they differ; only with ``num_heads``.
        scale_shift: whether the embedding scales and shifts the second normalisation of a block
            or is added before it.
        resblock_updown: whether residual blocks resample.
        conv_resample: whether resampling has a convolution; without effect with
            ``resblock_updown``.
        new_attention_order: how the channels of queries, keys and values are ordered.
        super_resolution: whether the network sees a smaller image (``low_res``), too.

    Source: arXiv:2105.05233, Section 3; sizes in Tables 11 to 13.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.0,
        num_heads: int = 1,
        num_head_channels: int | None = 64,
        num_heads_upsample: int | None = None,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        conv_resample: bool = True,
        new_attention_order: bool = False,
        super_resolution: bool = False,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            in_channels=in_channels,
            out_channels=out_channels,
            num_blocks=num_blocks,
            num_heads=num_heads,
        )
        if num_heads_upsample is not None and num_head_channels is not None:
            raise ConfigError(
                "num_heads_upsample has no effect with num_head_channels, which sets the heads "
                "everywhere; leave one of them out"
            )
        self.label_dim = label_dim
        self.super_resolution = super_resolution
        widths = level_widths(model_channels, channel_mult)
        levels = level_resolutions(img_resolution, len(widths))
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
        if label_dim:
            self.label_emb = nn.Embedding(label_dim, style.embedding_channels)
        seen = in_channels * 2 if super_resolution else in_channels
        half = encoder(seen, widths, levels, num_blocks, attn_resolutions, style)
        self.input_blocks, self.middle_block = half.input_blocks, half.middle_block
        if num_heads_upsample is not None:
            style = replace(style, num_heads=num_heads_upsample)
        self.output_blocks = _decoder(
            half.widths, widths, levels, num_blocks, attn_resolutions, style
        )
        self.out = nn.Sequential(
            group_norm(widths[0]), nn.SiLU(), Conv2d(widths[0], out_channels, 3, init=ZERO)
        )

    @override
    def forward(
        self,
        x: Images,
        c_noise: Float[Tensor, " #B"],
        class_embedding: Float[Tensor, "#B E"] | None = None,
        augment_labels: Float[Tensor, "#B A"] | None = None,
        low_res: Float[Tensor, "B C h w"] | None = None,
    ) -> Float[Tensor, "B D H W"]:
        """``low_res`` are the images that are to be enlarged.

        Raises:
            ConfigError: ``low_res`` is missing, or the network takes none.
        """
        embedding = self.time_embed.embed(c_noise)
        if class_embedding is not None:
            embedding = embedding + class_embedding
        x = self._beside(x, low_res)
        skips = []
        for stage in self.input_blocks:
            x = self._run(stage, x, embedding)
            skips.append(x)
        x = self._run(self.middle_block, x, embedding)
        for stage in self.output_blocks:
            x = self._run(stage, torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)

    def _beside(self, x: Images, low_res: Tensor | None) -> Tensor:
        if self.super_resolution != (low_res is not None):
            raise ConfigError(
                "this network enlarges images: give the smaller ones as low_res"
                if low_res is None
                else "this network takes no low_res; only one built for super-resolution does"
            )
        if low_res is None:
            return x
        enlarged = F.interpolate(low_res.to(x.dtype), x.shape[2:], mode="bilinear")
        return torch.cat([x, enlarged], dim=1)

    def _embed_rows(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        return mix_rows(self.label_emb, rows)

    def _embed_classes(self, labels: Int64[Tensor, " B"]) -> Float[Tensor, "B E"]:
        return look_up(self.label_emb, labels, self.label_dim, null_row=False)

    @override
    def layout(self) -> Layout:
        return unet_layout(self, [ClassTable(layer="label_emb")] if self.label_dim else [])


def _decoder(
    skips: Sequence[int],
    widths: Sequence[int],
    levels: Sequence[int],
    num_blocks: int,
    attn_resolutions: Sequence[int],
    style: ADMStyle,
) -> nn.ModuleList:
    left, width = list(skips), widths[-1]
    stages: list[EmbedSequential] = []
    for res, next_width in zip(levels[::-1], widths[::-1], strict=True):
        for index in range(num_blocks + 1):
            stage = block(width + left.pop(), next_width, style, attention=res in attn_resolutions)
            width = next_width
            if index == num_blocks and res != levels[0]:
                stage.append(resampler(width, style, "up"))
            stages.append(stage)
    return nn.ModuleList(stages)
