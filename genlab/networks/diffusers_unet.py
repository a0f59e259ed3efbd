"""diffusers' UNet2DModel as a raw network of GenLab."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.as_model import register_to_config
from genlab.networks.base import DiffusionNetwork, check_positive
from genlab.networks.layers.class_embedding import look_up, mix_rows
from genlab.networks.layers.edm_blocks import scaled_and_shifted
from genlab.networks.layout import Branch, ClassTable, Layout, Parts, build_layout


class DiffusersUNet(DiffusionNetwork):
    """A UNet2DModel of diffusers whose class table stands outside, where guidance can reach it.

    Args:
        img_resolution: height and width of the images.
        in_channels: channels of the images.
        out_channels: channels of the output.
        label_dim: number of classes; 0 = unconditional.
        options: further arguments of UNet2DModel; times must be embedded as sines and cosines.

    Raises:
        ConfigError: UNet2DModel refuses the arguments, or they mean another kind of embedding.
    """

    _keep_in_fp32_modules = None  # type: ignore[assignment]  # it casts by itself

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int = 3,
        out_channels: int = 3,
        label_dim: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_positive(img_resolution=img_resolution, in_channels=in_channels)
        more = dict(options or {})
        if more.get("time_embedding_type", "positional") != "positional":
            raise ConfigError(
                f"time_embedding_type {more['time_embedding_type']!r} is not supported: GenLab "
                "reads U-Nets of DDPM's kind, with positional embeddings"
            )
        self.label_dim = label_dim
        try:
            unet: Any = UNet2DModel(
                sample_size=img_resolution,
                in_channels=in_channels,
                out_channels=out_channels,
                class_embed_type="identity" if label_dim else None,
                **more,
            )
        except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError) as error:
            raise ConfigError(f"UNet2DModel cannot be built: {error}") from error
        self.unet = unet
        width = unet.time_embedding.linear_2.out_features
        self.class_embedding = nn.Embedding(label_dim, width) if label_dim else None

    @override
    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " #B"],
        class_embedding: Float[Tensor, "#B E"] | None = None,
        augment_labels: Float[Tensor, "#B A"] | None = None,
    ) -> Float[Tensor, "B D H W"]:
        """There are no augmentation labels."""
        if class_embedding is None:
            class_embedding = self.embed_labels(None)
        return self.unet(x, c_noise.expand(len(x)), class_embedding, return_dict=False)[0]

    def _embed_rows(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        assert self.class_embedding is not None
        return mix_rows(self.class_embedding, rows)

    def _embed_classes(self, labels: Int64[Tensor, " B"]) -> Float[Tensor, "B E"]:
        assert self.class_embedding is not None
        return look_up(self.class_embedding, labels, self.label_dim, null_row=False)

    @override
    def layout(self) -> Layout:
        down, up = self.unet.down_blocks, self.unet.up_blocks
        blocks = {
            **{f"unet.down_blocks.{number}": block for number, block in enumerate(down)},
            **({} if self.unet.mid_block is None else {"unet.mid_block": self.unet.mid_block}),
            **{f"unet.up_blocks.{number}": block for number, block in enumerate(up)},
        }
        return build_layout(
            self,
            blocks=list(blocks),
            parts=[part for path, block in blocks.items() for part in _parts(path, block)],
            tables=[ClassTable(layer="class_embedding")] if self.label_dim else [],
            modules={
                "time": ["unet.time_embedding"],
                "last": ["unet.conv_norm_out", "unet.conv_out"],
            },
        )


def _parts(path: str, block: nn.Module) -> Iterator[Parts]:
    """What the layers of one block add, in the order of the computation.

    That is the first residual block, its attention, the second one, ..., and last what resamples.
    """
    layers = {
        f"{path}.{name}": layer
        for name, layer in block.named_modules()
        if isinstance(layer, ResnetBlock2D | Attention)
    }
    attentions = [name for name, layer in layers.items() if isinstance(layer, Attention)]
    residual = [name for name in layers if name not in attentions]
    for pair in zip_longest(residual, attentions):
        for name in filter(None, pair):
            layer = layers[name]
            yield (
                _attention(name, path, layer)
                if name in attentions
                else _residual(name, path, layer)
            )


def _residual(path: str, block: str, layer: Any) -> Parts:
    width, modulated = layer.out_channels, layer.time_embedding_norm == "scale_shift"
    norm, modulation = f"{path}.norm2", f"{path}.time_emb_proj"
    inside = ("norm1", "conv1", "norm2", "conv2")
    return Parts(
        branches=(Branch(block=block, kind="convolution", layer=f"{path}.conv2", width=width),),
        modulated=(scaled_and_shifted(norm, modulation, width),) if modulated else (),
        modules={
            "convolution": tuple(f"{path}.{name}" for name in inside),
            "modulation": (modulation,),
        },
    )


def _attention(path: str, block: str, layer: Any) -> Parts:
    branch = Branch(block=block, kind="attention", layer=f"{path}.to_out.0", width=layer.out_dim)
    return Parts(branches=(branch,), modules={"attention": (path,)})
