"""DDPM++ and NCSN++, the U-Nets of Song et al. (2021) as retrained by EDM."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.choices import check_choice
from genlab.networks.as_model import register_to_config
from genlab.networks.base import (
    DiffusionNetwork,
    check_patches,
    check_positive,
    level_resolutions,
)
from genlab.networks.layers.edm_blocks import BlockStyle, UNetBlock, group_norm, unet_layout
from genlab.networks.layers.initialised import Conv2d, Images, Init, Linear
from genlab.networks.layers.noise_embeddings import FourierEmbedding, PositionalEmbedding
from genlab.networks.layers.resampling import DownAfterConv2d, Resample
from genlab.networks.layout import LINEAR_LAYERS, Layout

XAVIER = Init("xavier_uniform")
NEARLY_ZERO = Init("xavier_uniform", weight=1e-5)
EPS = 1e-6


class SongUNet(DiffusionNetwork):
    """DDPM++ (the defaults) and NCSN++.

    NCSN++ is ``embedding_type="fourier"``, ``channel_mult_noise=2``, ``encoder_type="residual"``,
    ``resample_filter=[1, 3, 3, 1]``.

    Args:
        img_resolution: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output.
        label_dim: number of classes, 0 = unconditional.
        augment_dim: number of augmentation labels, 0 = none.
        model_channels: base width, and the width of the first convolution.
        channel_mult: width of each level in multiples of ``model_channels``, finest first.
        channel_mult_emb: width of the embedding in multiples of ``model_channels``.
        num_blocks: residual blocks at each encoder level; the decoder has one more.
        attn_resolutions: resolutions with self-attention, in pixels of the grid that the network
            works on.
        dropout: probability of dropping a feature in training.
        embedding_type: of the noise level, "positional" or "fourier".
        channel_mult_noise: width of the noise embedding in multiples of ``model_channels``.
        encoder_type: "standard"; "skip" adds the downsampled image to each level; "residual" adds
            features of it.
        decoder_type: "standard"; "skip" sums images emitted at every level.
        resample_filter: taps of the low-pass filter.
        patch_size: side of the pixel blocks that are folded into channels before the network and
            unfolded after it (GenLab's own; 1 = off, the official network). With 2 the network
            works on a grid of half the size, which names its levels and is what
            ``attn_resolutions`` refers to.

    Source: Karras et al. 2022, arXiv:2206.00364, Appendix F.2 and Table 7.
    """

    encoder_types: ClassVar = ("standard", "skip", "residual")
    decoder_types: ClassVar = ("standard", "skip")
    embedding_types: ClassVar = ("positional", "fourier")

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            in_channels=in_channels,
            out_channels=out_channels,
            model_channels=model_channels,
            channel_mult=channel_mult,
            channel_mult_emb=channel_mult_emb,
            channel_mult_noise=channel_mult_noise,
            num_blocks=num_blocks,
            patch_size=patch_size,
        )
        check_choice("embedding_type", embedding_type, self.embedding_types)
        check_choice("encoder_type", encoder_type, self.encoder_types)
        check_choice("decoder_type", decoder_type, self.decoder_types)
        check_patches(patch_size, img_resolution=img_resolution)
        self.label_dim = label_dim
        self.patch_size = patch_size
        self.num_blocks = num_blocks
        self.encoder_type = encoder_type
        self.decoder_type = decoder_type
        self.resolutions = level_resolutions(
            img_resolution // patch_size, len(channel_mult), "img_resolution / patch_size"
        )
        widths = [model_channels * mult for mult in channel_mult]
        style = BlockStyle(
            embedding_channels=model_channels * channel_mult_emb,
            dropout=dropout,
            eps=EPS,
            skip_scale=math.sqrt(0.5),
            scale_shift=False,
            project_resampled=True,
            channels_per_head=None,
            taps=resample_filter,
            init=XAVIER,
            init_last=NEARLY_ZERO,
            init_attention=Init("xavier_uniform", weight=math.sqrt(0.2)),
        )
        self._build_mapping(
            model_channels * channel_mult_noise, style, label_dim, augment_dim, embedding_type
        )
        skips = self._build_encoder(
            in_channels * patch_size**2, model_channels, widths, set(attn_resolutions), style
        )
        self._build_decoder(
            out_channels * patch_size**2, widths, skips, set(attn_resolutions), style
        )

    def _build_mapping(
        self, width: int, style: BlockStyle, label_dim: int, augment_dim: int, embedding_type: str
    ) -> None:
        self.map_noise: nn.Module = (
            PositionalEmbedding(width, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(width)
        )
        self.map_label = Linear(label_dim, width, init=XAVIER) if label_dim else None
        self.map_augment = (
            Linear(augment_dim, width, init=XAVIER, bias=False) if augment_dim else None
        )
        self.map_layer0 = Linear(width, style.embedding_channels, init=XAVIER)
        self.map_layer1 = Linear(style.embedding_channels, style.embedding_channels, init=XAVIER)

    def _build_encoder(
        self,
        in_channels: int,
        model_channels: int,
        widths: Sequence[int],
        attn_resolutions: set[int],
        style: BlockStyle,
    ) -> list[int]:
        """Fill ``enc``; return the widths of the skip connections in the order of their making."""
        self.enc = nn.ModuleDict()
        width, skips = model_channels, []
        image_channels = in_channels
        for res, next_width in zip(self.resolutions, widths, strict=True):
            name = f"{res}x{res}"
            if res == self.resolutions[0]:
                self.enc[f"{name}_conv"] = Conv2d(in_channels, width, 3, init=XAVIER)
            else:
                self.enc[f"{name}_down"] = UNetBlock(width, width, style, direction="down")
                if self.encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Resample("down", style.taps)
                    self.enc[f"{name}_aux_skip"] = Conv2d(image_channels, width, 1, init=XAVIER)
                elif self.encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = DownAfterConv2d(
                        image_channels, width, 3, taps=style.taps, init=XAVIER
                    )
                    image_channels = width
            skips.append(width)
            for index in range(self.num_blocks):
                self.enc[f"{name}_block{index}"] = UNetBlock(
                    width, next_width, style, attention=res in attn_resolutions
                )
                width = next_width
                skips.append(width)
        return skips

    def _build_decoder(
        self,
        out_channels: int,
        widths: Sequence[int],
        skips: list[int],
        attn_resolutions: set[int],
        style: BlockStyle,
    ) -> None:
        """Fill ``dec``, coarsest level first."""
        self.dec = nn.ModuleDict()
        width = widths[-1]
        for res, next_width in zip(self.resolutions[::-1], widths[::-1], strict=True):
            name = f"{res}x{res}"
            coarsest, finest = res == self.resolutions[-1], res == self.resolutions[0]
            if coarsest:
                self.dec[f"{name}_in0"] = UNetBlock(width, width, style, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(width, width, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(width, width, style, direction="up")
            for index in range(self.num_blocks + 1):
                # Unlike ADM, only the last block of a level attends.
                attention = res in attn_resolutions and index == self.num_blocks
                self.dec[f"{name}_block{index}"] = UNetBlock(
                    width + skips.pop(), next_width, style, attention=attention
                )
                width = next_width
            if self.decoder_type == "skip" and not coarsest:
                self.dec[f"{name}_aux_up"] = Resample("up", style.taps)
            if self.decoder_type == "skip" or finest:
                self.dec[f"{name}_aux_norm"] = group_norm(width, EPS)
                self.dec[f"{name}_aux_conv"] = Conv2d(width, out_channels, 3, init=NEARLY_ZERO)

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
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        x = self._decode(self._encode(x, embedding), embedding)
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x

    def _embed_rows(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        assert self.map_label is not None
        return self.map_label(rows * self._class_scale)

    @property
    def _class_scale(self) -> float:
        # Unit variance over the classes: one-hot rows weigh as much as the noise features.
        return math.sqrt(self.label_dim)

    @override
    def layout(self) -> Layout:
        """With the decoder "skip" every level has an output layer."""
        levels = self.resolutions[::-1] if self.decoder_type == "skip" else self.resolutions[:1]
        last = [f"dec.{res}x{res}_aux_{part}" for res in levels for part in ("norm", "conv")]
        layers = (*LINEAR_LAYERS, DownAfterConv2d)
        return unet_layout(self, last=last, layers=layers, class_scale=self._class_scale)

    def _embed(
        self,
        c_noise: Tensor,
        class_embedding: Tensor | None,
        augment_labels: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        cos, sin = self.map_noise(c_noise).chunk(2, dim=1)
        embedding = torch.cat([sin, cos], dim=1).to(dtype)
        if class_embedding is not None:
            embedding = embedding + class_embedding
        if self.map_augment is not None and augment_labels is not None:
            embedding = embedding + self.map_augment(augment_labels.to(dtype))
        embedding = F.silu(self.map_layer0(embedding))
        return F.silu(self.map_layer1(embedding))

    def _encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Features after every block, which the decoder takes back from the end."""
        image, skips = x, []
        for res in self.resolutions:
            name = f"{res}x{res}"
            if res == self.resolutions[0]:
                x = self.enc[f"{name}_conv"](x)
            else:
                x = self._run(self.enc[f"{name}_down"], x, embedding)
                x, image = self._add_image(name, x, image)
            skips.append(x)
            for index in range(self.num_blocks):
                x = self._run(self.enc[f"{name}_block{index}"], x, embedding)
                skips.append(x)
        return skips

    def _add_image(self, name: str, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Add what is known of the image at this resolution; return it for the next level too."""
        if self.encoder_type == "skip":
            image = self.enc[f"{name}_aux_down"](image)
            return x + self.enc[f"{name}_aux_skip"](image), image
        if self.encoder_type == "residual":
            x = (x + self.enc[f"{name}_aux_residual"](image)) / math.sqrt(2)
            return x, x
        return x, image

    def _decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        x, image = skips[-1], None
        for res in self.resolutions[::-1]:
            name = f"{res}x{res}"
            if res == self.resolutions[-1]:
                x = self._run(self.dec[f"{name}_in0"], x, embedding)
                x = self._run(self.dec[f"{name}_in1"], x, embedding)
            else:
                x = self._run(self.dec[f"{name}_up"], x, embedding)
            for index in range(self.num_blocks + 1):
                x = torch.cat([x, skips.pop()], dim=1)
                x = self._run(self.dec[f"{name}_block{index}"], x, embedding)
            if self.decoder_type == "skip" or res == self.resolutions[0]:
                image = self._emit(name, x, image)
        assert image is not None
        return image

    def _emit(self, name: str, x: Tensor, coarser: Tensor | None) -> Tensor:
        """The image of this level, on top of that of the coarser one."""
        image = self.dec[f"{name}_aux_conv"](F.silu(self.dec[f"{name}_aux_norm"](x), inplace=True))
        return image if coarser is None else image + self.dec[f"{name}_aux_up"](coarser)
