"""The DiT that diffusers has (DiTTransformer2DModel), which is not quite the paper's."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab.networks.as_model import register_to_config
from genlab.networks.base import (
    DiffusionNetwork,
    check_patches,
    check_positive,
)
from genlab.networks.dit import (
    TIME_FEATURES,
    Block,
    FinalLayer,
    LabelEmbedder,
    PatchEmbedder,
    TimestepEmbedder,
    sin_cos_positions,
    transformer_layout,
    unpatchify,
)
from genlab.networks.layers.initialised import Images
from genlab.networks.layers.noise_embeddings import time_features
from genlab.networks.layout import Layout


class DiffusersDiT(DiffusionNetwork):
    """A DiT whose every block embeds noise level and class anew, with tables of its own.

    Three things differ from `genlab.networks.dit.DiT`: the embedders of each block (training leads
    them apart); the frequencies of the time features, which here reach 1 / 10000 itself; and the
    epsilon of a block's second normalisation. The output layer listens to the first block's
    embedders.

    Args:
        img_resolution: height and width of the images (or latents).
        in_channels: channels of the input.
        out_channels: channels of the output; twice the input's where a variance is predicted.
        label_dim: number of classes, >= 1; the table's last row is the null class.
        patch_size: side of a patch.
        hidden_size: features of a token, a multiple of 4 and of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads of a block.
        norm_eps: of the second normalisation.
    """

    @register_to_config
    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(
            img_resolution=img_resolution,
            in_channels=in_channels,
            out_channels=out_channels,
            label_dim=label_dim,
            patch_size=patch_size,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
        )
        check_patches(patch_size, img_resolution=img_resolution)
        self.label_dim = label_dim
        self.patch_size = patch_size
        self.grid = img_resolution // patch_size
        self.x_embedder = PatchEmbedder(in_channels, patch_size, hidden_size)
        self.t_embedders = nn.ModuleList(TimestepEmbedder(hidden_size) for _ in range(depth))
        self.y_embedders = nn.ModuleList(
            LabelEmbedder(label_dim, hidden_size, null_class=True) for _ in range(depth)
        )
        positions = sin_cos_positions(hidden_size, self.grid, self.grid).float()[None]
        self.register_buffer("pos_embed", positions, persistent=False)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, 4 * hidden_size, 1, index) for index in range(depth)
        )
        for block in self.blocks:
            block.norm2.eps = norm_eps  # type: ignore[union-attr]  # a LayerNorm
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * out_channels)

    @override
    def forward(
        self,
        x: Images,
        c_noise: Float[Tensor, " #B"],
        class_embedding: Float[Tensor, "#B E"] | None = None,
        augment_labels: Float[Tensor, "#B A"] | None = None,
    ) -> Float[Tensor, "B D H W"]:
        """There are no augmentation labels."""
        if class_embedding is None:
            class_embedding = self.embed_labels(None)
        assert class_embedding is not None
        time = time_features(c_noise, TIME_FEATURES, endpoint=True).to(x.dtype)
        conditions = [
            embedder.mlp(time) + classes  # type: ignore[operator]  # a Sequential
            for embedder, classes in zip(
                self.t_embedders, class_embedding.chunk(len(self.blocks), dim=1), strict=True
            )
        ]
        tokens = self.x_embedder(x) + self.pos_embed
        for block, condition in zip(self.blocks, conditions, strict=True):
            tokens = self._run(block, tokens, condition)
        patches = self.final_layer(tokens, conditions[0])
        return unpatchify(patches, self.grid, self.patch_size)

    def _embed_rows(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        """The embeddings of all blocks, one after another."""
        return torch.cat([embedder.mix(rows) for embedder in self._tables()], dim=1)

    def _embed_classes(self, labels: Int64[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """The same for classes."""
        return torch.cat([embedder(labels) for embedder in self._tables()], dim=1)

    def _tables(self) -> Iterator[LabelEmbedder]:
        for embedder in self.y_embedders:
            assert isinstance(embedder, LabelEmbedder)
            yield embedder

    @override
    def layout(self) -> Layout:
        return transformer_layout(
            self,
            tables=[f"y_embedders.{index}.embedding_table" for index in range(len(self.blocks))],
            null_row=True,
            time=["t_embedders"],
        )
