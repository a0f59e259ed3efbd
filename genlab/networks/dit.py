"""DiT, the diffusion transformer of Peebles and Xie (2023), which is SiT's network too.

Parameter names are those of the official checkpoints.

Shapes: B samples, T tokens (one a patch, row by row), D features, N hyper-connected streams.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError, LabelError
from genlab.networks.as_model import register_to_config
from genlab.networks.base import (
    DiffusionNetwork,
    Labels,
    check_patches,
    check_positive,
)
from genlab.networks.kernels.gelu import gelu
from genlab.networks.layers.class_embedding import look_up, mix_rows
from genlab.networks.layers.hyper_connections import HyperConnection
from genlab.networks.layers.initialised import Images, Init, Linear, TokenLinear
from genlab.networks.layers.noise_embeddings import time_features
from genlab.networks.layout import (
    Branch,
    ClassTable,
    Layout,
    ModulatedNorm,
    Parts,
    Rows,
    build_layout,
    paths_of,
)

Tokens = Float[Tensor, "B T D"]
Streams = Float[Tensor, "B T D"] | Float[Tensor, "N B T D"]

XAVIER = Init("xavier_uniform")
ZERO = Init("xavier_uniform", weight=0.0)
EPS = 1e-6
TIME_FEATURES = 256


class DiT(DiffusionNetwork):
    """A transformer over image patches; each block is conditioned on noise level and class.

    Images may have another size than ``img_resolution`` as long as patches tile them: positions
    keep to the range that the network was trained on (see `sin_cos_positions`).

    Args:
        img_resolution: height and width of the images (or latents).
        in_channels: channels of the input.
        out_channels: channels of the output; twice the image's where a variance is predicted, and
            in the official SiT, which ignores the second half.
        label_dim: number of classes, 0 = unconditional.
        augment_dim: number of augmentation labels, 0 = none (GenLab's own).
        patch_size: side of a patch.
        hidden_size: features of a token, a multiple of 4 and of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads of a block.
        mlp_ratio: width of the hidden layer of a block's MLP in multiples of ``hidden_size``.
        null_class: whether the class table has a last row for 'no class', as training with label
            dropout needs.
        position_resolution: the image size whose positions the network was trained on; None is
            ``img_resolution``. A network that goes from 256 to 512 pixels keeps 256 here.
        num_streams: residual streams that hyper-connections mix (GenLab's own; 1 = off, the
            official network).

    Source: Peebles and Xie, arXiv:2212.09748, Sec. 3.2 and Table 1 (adaLN-Zero).
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        null_class: bool = True,
        position_resolution: int | None = None,
        num_streams: int = 1,
    ) -> None:
        super().__init__()
        position_resolution = position_resolution or img_resolution
        check_positive(
            img_resolution=img_resolution,
            in_channels=in_channels,
            out_channels=out_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            position_resolution=position_resolution,
            num_streams=num_streams,
        )
        if not 1 <= hidden_size * mlp_ratio < math.inf:
            raise ConfigError(
                f"mlp_ratio {mlp_ratio:g} leaves no hidden layer to {hidden_size} features; 4 is "
                "usual"
            )
        check_patches(
            patch_size, img_resolution=img_resolution, position_resolution=position_resolution
        )
        if hidden_size % 4 or hidden_size % num_heads:
            raise ConfigError(
                "hidden_size must be a multiple of 4 and of num_heads, got "
                f"{hidden_size} and {num_heads}"
            )
        self.label_dim = label_dim
        self.null_class = null_class
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.num_streams = num_streams
        self.trained_grid = position_resolution // patch_size
        self.grid = img_resolution // patch_size
        self.x_embedder = PatchEmbedder(in_channels, patch_size, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = (
            LabelEmbedder(label_dim, hidden_size, null_class=null_class) if label_dim > 0 else None
        )
        self.map_augment = (
            Linear(augment_dim, hidden_size, init=ZERO, bias=False) if augment_dim else None
        )
        # In the checkpoints, but never trained.
        self.register_buffer("pos_embed", self._positions(self.grid, self.grid).float()[None])
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, int(hidden_size * mlp_ratio), num_streams, index)
            for index in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * out_channels)

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
        condition = self.t_embedder(c_noise, x.dtype)
        if class_embedding is not None:
            condition = condition + class_embedding
        if self.map_augment is not None and augment_labels is not None:
            condition = condition + self.map_augment(augment_labels.to(x.dtype))
        rows, columns = self._grid_of(x)
        tokens = self.x_embedder(x)
        tokens = tokens + self._position_table(rows, columns, tokens)
        if self.num_streams > 1:
            tokens = tokens.expand(self.num_streams, *tokens.shape)
        for block in self.blocks:
            tokens = self._run(block, tokens, condition)
        if self.num_streams > 1:
            # The paper sums; the normalisation behind cannot tell, and this keeps the scale.
            tokens = tokens.mean(0)
        return unpatchify(self.final_layer(tokens, condition), rows, self.patch_size)

    @override
    def embed_labels(self, labels: Labels | None) -> Float[Tensor, "#B E"] | None:
        """A row of class weights weighs the rows of the table; a zero row is the null class.

        Raises:
            LabelError: the null class is asked for, and the table has none.
        """
        if self.label_dim and not self.null_class and _asks_for_null(labels):
            raise LabelError(
                "this network was trained without label dropout, so it has no null class; give a "
                "class for every sample, and no classifier-free guidance"
            )
        return super().embed_labels(labels)

    def _embed_rows(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        assert self.y_embedder is not None
        return self.y_embedder.mix(rows)

    def _embed_classes(self, labels: Int64[Tensor, " B"]) -> Float[Tensor, "B E"]:
        assert self.y_embedder is not None
        return self.y_embedder(labels)

    @override
    def layout(self) -> Layout:
        return transformer_layout(
            self,
            tables=["y_embedder.embedding_table"] if self.y_embedder is not None else [],
            null_row=self.null_class,
            time=["t_embedder"],
        )

    def _grid_of(self, x: Images) -> tuple[int, int]:
        height, width = x.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"images of {width}x{height} cannot be cut into patches of {self.patch_size}; "
                "use a size that it divides"
            )
        return height // self.patch_size, width // self.patch_size

    def _position_table(self, rows: int, columns: int, like: Tokens) -> Float[Tensor, "1 T D"]:
        if rows == columns == self.grid:
            return self.pos_embed.to(like)
        return _cached_positions(
            self.hidden_size, rows, columns, self.trained_grid, like.device, like.dtype
        )

    def _positions(self, rows: int, columns: int) -> Float64[Tensor, "T D"]:
        return sin_cos_positions(self.hidden_size, rows, columns, self.trained_grid)


class PatchEmbedder(nn.Module):
    """Cut images into patches and map each one to a token."""

    def __init__(self, in_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Images) -> Tokens:
        """(B, C, H, W) -> (B, T, D), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Embed a noise level: sines and cosines, then two layers."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        layers = [
            Linear(features, hidden_size, init=XAVIER) for features in (TIME_FEATURES, hidden_size)
        ]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1])

    def forward(self, t: Float[Tensor, " B"], dtype: torch.dtype) -> Float[Tensor, "B D"]:
        """Embed; the phases are taken in float32 whatever ``dtype`` the layers have."""
        return self.mlp(time_features(t, TIME_FEATURES).to(dtype))


class LabelEmbedder(nn.Module):
    """The table of class embeddings.

    Args:
        num_classes: K.
        hidden_size: D.
        null_class: whether a row behind the last class stands for 'no class'.
    """

    def __init__(self, num_classes: int, hidden_size: int, *, null_class: bool) -> None:
        super().__init__()
        self.num_classes, self.null_class = num_classes, null_class
        self.embedding_table = nn.Embedding(num_classes + null_class, hidden_size)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Look classes up; what is no class is the null class, a zero row where there is none."""
        return look_up(self.embedding_table, labels, self.num_classes, null_row=self.null_class)

    def mix(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
        """Mix the table's rows by class weights; zeros are the null class."""
        if self.null_class:
            no_class = (rows == 0).all(1, keepdim=True)
            rows = torch.cat([rows, no_class.to(rows.dtype)], dim=1)
        return mix_rows(self.embedding_table, rows)


class Attention(nn.Module):
    """Self-attention over all tokens."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = TokenLinear(hidden_size, 3 * hidden_size, init=XAVIER)
        self.proj = TokenLinear(hidden_size, hidden_size, init=XAVIER)

    def forward(self, x: Tokens) -> Tokens:
        """(B, T, D) -> (B, T, D)."""
        heads = rearrange(self.qkv(x), "b t (s h c) -> s b h t c", s=3, h=self.num_heads)
        out = F.scaled_dot_product_attention(*heads.unbind(0))
        return self.proj(rearrange(out, "b h t c -> b t (h c)"))


class MLP(nn.Module):
    """Two layers with a GELU (its tanh form) between them."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(hidden_size, width, init=XAVIER)
        self.fc2 = TokenLinear(width, hidden_size, init=XAVIER)

    def forward(self, x: Tokens) -> Tokens:
        """(B, T, D) -> (B, T, D)."""
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each between a modulated normalisation and a gate (adaLN-Zero).

    Args:
        hidden_size: features of a token.
        num_heads: attention heads.
        mlp_width: features inside the MLP.
        num_streams: residual streams; above 1 they are hyper-connected.
        index: number of the block.

    Attributes:
        gamma_attn: factors of the attention's output, (D,), as DiffFit trains them; None (as built)
            multiplies by nothing.
        gamma_mlp: the same of the MLP's.
    """

    gamma_attn: Tensor | None
    gamma_mlp: Tensor | None

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_width: int, num_streams: int, index: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=EPS, elementwise_affine=False)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=EPS, elementwise_affine=False)
        self.mlp = MLP(hidden_size, mlp_width)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), Linear(hidden_size, 6 * hidden_size, init=ZERO)
        )
        self.hyper_attn, self.hyper_mlp = (
            HyperConnection(num_streams, layer) if num_streams > 1 else None
            for layer in (2 * index, 2 * index + 1)
        )
        self.register_parameter("gamma_attn", None)
        self.register_parameter("gamma_mlp", None)

    def forward(self, x: Streams, condition: Float[Tensor, "#B D"]) -> Streams:
        """Tokens (or their streams) in, the same out."""
        modulation = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        x = self._add(self.attn, self.norm1, self.hyper_attn, self.gamma_attn, x, *modulation[:3])
        return self._add(self.mlp, self.norm2, self.hyper_mlp, self.gamma_mlp, x, *modulation[3:])

    @staticmethod
    def _add(
        layer: nn.Module,
        norm: nn.Module,
        hyper: HyperConnection | None,
        gamma: Tensor | None,
        x: Streams,
        shift: Tensor,
        scale: Tensor,
        gate: Tensor,
    ) -> Streams:
        if gamma is not None:  # on the gate, (B, 1, D), in place of all tokens
            gate = gate * gamma.to(gate.dtype)  # under autocast they differ
        inside = x if hyper is None else hyper.read(x)
        out = layer(modulate(norm(inside), shift, scale))
        return torch.addcmul(x, gate, out) if hyper is None else hyper.write(x, gate * out)

    def parts(self, path: str) -> Parts:
        """What this block, standing at ``path``, adds to its network's `Layout`."""
        modulation, width = f"{path}.adaLN_modulation", self.norm1.normalized_shape[0]
        shift1, scale1, gate1, shift2, scale2, gate2 = _rows(f"{modulation}.1", width, 6)
        attention = Branch(
            block=path,
            kind="attention",
            layer=f"{path}.attn.proj",
            width=width,
            scale=f"{path}.gamma_attn",
            gate=gate1,
        )
        mlp = Branch(
            block=path,
            kind="mlp",
            layer=f"{path}.mlp.fc2",
            width=width,
            scale=f"{path}.gamma_mlp",
            gate=gate2,
        )
        return Parts(
            branches=(attention, mlp),
            modulated=(
                ModulatedNorm(norm=f"{path}.norm1", scale=scale1, shift=shift1),
                ModulatedNorm(norm=f"{path}.norm2", scale=scale2, shift=shift2),
            ),
            modules={
                "attention": (f"{path}.attn",),
                "mlp": (f"{path}.mlp",),
                "modulation": (modulation,),
            },
        )


class FinalLayer(nn.Module):
    """Tokens to pixels: features of a patch in the order row, column, channel."""

    def __init__(self, hidden_size: int, features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=EPS, elementwise_affine=False)
        self.linear = TokenLinear(hidden_size, features, init=ZERO)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), Linear(hidden_size, 2 * hidden_size, init=ZERO)
        )

    def forward(self, x: Tokens, condition: Float[Tensor, "#B D"]) -> Float[Tensor, "B T features"]:
        """(B, T, D) -> (B, T, features)."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))

    def parts(self, path: str) -> Parts:
        """The parts of this layer for a `Layout`; ``path`` is its name in the network."""
        modulation, width = f"{path}.adaLN_modulation", self.norm_final.normalized_shape[0]
        shift, scale = _rows(f"{modulation}.1", width, 2)
        return Parts(
            modulated=(ModulatedNorm(norm=f"{path}.norm_final", scale=scale, shift=shift),),
            modules={"modulation": (modulation,)},
        )


def transformer_layout(
    network: nn.Module, *, tables: Sequence[str], null_row: bool, time: Sequence[str]
) -> Layout:
    """The layout of a network made of `Block` and a `FinalLayer` called ``final_layer``.

    Args:
        network: the network.
        tables: paths of its class tables.
        null_row: whether a table's last row is the null class.
        time: paths of what embeds the noise level.
    """
    parts = [
        module.parts(path)
        for path, module in network.named_modules()
        if isinstance(module, Block | FinalLayer)
    ]
    return build_layout(
        network,
        blocks=paths_of(network, Block),
        parts=parts,
        tables=[ClassTable(layer=table, null_row=null_row) for table in tables],
        modules={"time": time, "last": ["final_layer"]},
    )


def _rows(layer: str, width: int, number: int) -> list[Rows]:
    """The rows of a linear layer that make ``number`` vectors, one after another."""
    return [
        Rows(layer=layer, start=part * width, stop=(part + 1) * width) for part in range(number)
    ]


def unpatchify(
    patches: Float[Tensor, "B T features"], rows: int, patch_size: int
) -> Float[Tensor, "B D H W"]:
    """Lay patches out as images, ``rows`` of them below each other."""
    p = patch_size
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)


def modulate(
    x: Tokens, shift: Float[Tensor, "#B 1 D"], scale: Float[Tensor, "#B 1 D"]
) -> Float[Tensor, "B T D"]:
    """``x (1 + scale) + shift`` in one pass over the tokens."""
    return torch.addcmul(shift, x, 1 + scale)


def sin_cos_positions(
    channels: int, rows: int, columns: int, trained_grid: int | None = None
) -> Float64[Tensor, "T C"]:
    """Sines and cosines of each patch's column (first half of the channels) and row.

    Args:
        channels: a multiple of 4; each half holds sines, then cosines, at ``channels / 4``
            frequencies from 1 to nearly 1 / 10000.
        rows: patches from top to bottom.
        columns: patches from left to right.
        trained_grid: patches a side that the network was trained on. Another grid is laid over the
            same range: at twice the size, patch (i, j) stands at (i / 2, j / 2). None means that
            this grid is the trained one.

    Source: DiT's fixed table; the rule for other sizes is that of DiffFit (arXiv:2304.06648).
    """
    index = torch.arange(channels // 4, dtype=torch.float64)
    frequencies = 10000 ** (-index / (channels // 4))

    def features(count: int) -> Float64[Tensor, "count half"]:
        spacing = 1.0 if trained_grid is None else trained_grid / count
        phase = spacing * torch.arange(count, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=1)

    of_row = features(rows)[:, None].expand(-1, columns, -1)
    of_column = features(columns)[None].expand(rows, -1, -1)
    return torch.cat([of_column, of_row], dim=-1).flatten(0, 1)


@lru_cache(maxsize=8)
def _cached_positions(
    channels: int,
    rows: int,
    columns: int,
    trained_grid: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Float[Tensor, "1 T D"]:
    # Kept where it is used: a copy in every evaluation would stall a device.
    with torch.device("cpu"):
        table = sin_cos_positions(channels, rows, columns, trained_grid).float()[None]
    return table.to(device, dtype)


def _asks_for_null(labels: Labels | None) -> bool:
    if labels is None:
        return True
    if labels.device.type != "cpu":  # reading the values would stall the device
        return False
    null = (labels == 0).all(1) if labels.is_floating_point() else labels == -1
    return bool(null.any())


SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""Size -> hidden_size, depth, num_heads (Table 1 of the paper)."""


def _named(size: str, patch_size: int) -> partial[DiT]:
    hidden_size, depth, num_heads = SIZES[size]
    return partial(
        DiT, patch_size=patch_size, hidden_size=hidden_size, depth=depth, num_heads=num_heads
    )


DiT_S_2, DiT_S_4, DiT_S_8 = (_named("S", patch_size) for patch_size in (2, 4, 8))
DiT_B_2, DiT_B_4, DiT_B_8 = (_named("B", patch_size) for patch_size in (2, 4, 8))
DiT_L_2, DiT_L_4, DiT_L_8 = (_named("L", patch_size) for patch_size in (2, 4, 8))
DiT_XL_2, DiT_XL_4, DiT_XL_8 = (_named("XL", patch_size) for patch_size in (2, 4, 8))
