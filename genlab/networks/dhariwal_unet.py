"""ADM, the U-Net of Dhariwal and Nichol (2021) as retrained by EDM."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.networks.as_model import register_to_config
from genlab.networks.base import (
    DiffusionNetwork,
    check_positive,
    level_resolutions,
)
from genlab.networks.layers.edm_blocks import BlockStyle, UNetBlock, group_norm, unet_layout
from genlab.networks.layers.initialised import Conv2d, Images, Init, Linear
from genlab.networks.layers.noise_embeddings import PositionalEmbedding
from genlab.networks.layout import Layout

KAIMING = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
ZERO = Init("kaiming_uniform", weight=0.0)
EPS = 1e-5


class DhariwalUNet(DiffusionNetwork):
    """ADM: scale-and-shift normalisation, skip paths without weights, heads of 64 channels.

    A level of fewer than 64 channels has no attention whatever ``attn_resolutions`` says, as in the
    official code.

    Args:
        img_resolution: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output (twice the image's where a variance is predicted).
        label_dim: number of classes, 0 = unconditional.
        augment_dim: number of augmentation labels, 0 = none.
        model_channels: base width.
        channel_mult: width of each level in multiples of ``model_channels``, finest first.
        channel_mult_emb: width of the embedding in multiples of ``model_channels``.
        num_blocks: residual blocks at each encoder level; the decoder has one more.
        attn_resolutions: resolutions with self-attention, in pixels.
        dropout: probability of dropping a feature in training.

    Source: Karras et al. 2022, arXiv:2206.00364, Appendix F.2 and Table 7.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            in_channels=in_channels,
            out_channels=out_channels,
            model_channels=model_channels,
            channel_mult=channel_mult,
            channel_mult_emb=channel_mult_emb,
            num_blocks=num_blocks,
        )
        self.label_dim = label_dim
        self.num_blocks = num_blocks
        self.resolutions = level_resolutions(img_resolution, len(channel_mult))
        width = model_channels * channel_mult_emb
        style = BlockStyle(
            embedding_channels=width,
            dropout=dropout,
            eps=EPS,
            skip_scale=1.0,
            scale_shift=True,
            project_resampled=False,
            channels_per_head=64,
            taps=(1, 1),
            init=KAIMING,
            init_last=ZERO,
            init_attention=KAIMING,
        )
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = (
            Linear(augment_dim, model_channels, init=ZERO, bias=False) if augment_dim else None
        )
        self.map_layer0 = Linear(model_channels, width, init=KAIMING)
        self.map_layer1 = Linear(width, width, init=KAIMING)
        init_label = Init("kaiming_normal", weight=math.sqrt(label_dim))
        self.map_label = (
            Linear(label_dim, width, init=init_label, bias=False) if label_dim else None
        )
        self._build_levels(
            in_channels, [model_channels * mult for mult in channel_mult], attn_resolutions, style
        )
        self.out_norm = group_norm(model_channels * channel_mult[0], EPS)
        self.out_conv = Conv2d(model_channels * channel_mult[0], out_channels, 3, init=ZERO)

    def _build_levels(
        self,
        in_channels: int,
        widths: Sequence[int],
        attn_resolutions: Sequence[int],
        style: BlockStyle,
    ) -> None:
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, skips = widths[0], []
        for res, next_width in zip(self.resolutions, widths, strict=True):
            name, attention = f"{res}x{res}", res in attn_resolutions
            if res == self.resolutions[0]:
                self.enc[f"{name}_conv"] = Conv2d(in_channels, width, 3, init=style.init)
            else:
                self.enc[f"{name}_down"] = UNetBlock(width, width, style, direction="down")
            skips.append(width)
            for index in range(self.num_blocks):
                self.enc[f"{name}_block{index}"] = UNetBlock(
                    width, next_width, style, attention=attention
                )
                width = next_width
                skips.append(width)
        for res, next_width in zip(self.resolutions[::-1], widths[::-1], strict=True):
            name, attention = f"{res}x{res}", res in attn_resolutions
            if res == self.resolutions[-1]:
                self.dec[f"{name}_in0"] = UNetBlock(width, width, style, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(width, width, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(width, width, style, direction="up")
            for index in range(self.num_blocks + 1):
                self.dec[f"{name}_block{index}"] = UNetBlock(
                    width + skips.pop(), next_width, style, attention=attention
                )
                width = next_width

    @override
    def forward(
        self,
        x: Images,
        c_noise: Float[Tensor, " #B"],
        class_embedding: Float[Tensor, "#B E"] | None = None,
        augment_labels: Float[Tensor, "#B A"] | None = None,
    ) -> Float[Tensor, "B D H W"]:
        if class_embedding is None:
            class_embedding = self.embed_labels(None)
        embedding = self._embed(c_noise, class_embedding, augment_labels, x.dtype)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("_conv") else self._run(block, x, embedding)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._run(block, x, embedding)
        return self.out_conv(F.silu(self.out_norm(x), inplace=True))

    def _embed_rows(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        assert self.map_label is not None
        return self.map_label(rows)

    @override
    def layout(self) -> Layout:
        return unet_layout(self, last=["out_norm", "out_conv"])

    def _embed(
        self,
        c_noise: Tensor,
        class_embedding: Tensor | None,
        augment_labels: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        embedding = self.map_noise(c_noise).to(dtype)
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels.to(dtype))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if class_embedding is not None:
            embedding = embedding + class_embedding
        return F.silu(embedding)
