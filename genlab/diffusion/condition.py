"""What a denoiser is conditioned on: class labels, the null class, acts on the embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

NULL_CLASS = -1
"""The label of 'no class' in every network: a zero one-hot row in EDM, DiT's extra table row."""

EmbeddingTransform = Callable[[Float[Tensor, "B E"]], Float[Tensor, "B E"]]
"""A map from class embeddings to class embeddings (CADS is one)."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The condition of one batch.

    Attributes:
        labels: class indices (B,), int64, with `NULL_CLASS` for 'no class'; or soft labels (B, K),
            float, one row a sample whose zero row is the null class; or None for an unconditional
            model.
        augment_labels: non-leaky augmentation parameters (B, A); None (as always when sampling)
            means no augmentation.
        embedding_transforms: one entry for each row block: (number of rows, transform or None). The
            denoiser embeds the labels with the network's own table, then hands each block to its
            transform before the network sees it. Empty means that nothing acts on the embedding.
        low_res: the smaller images that a super-resolution network enlarges (B, C, h, w), in
            [-1, 1]; None for any other network. They are no class: `null` keeps them.
    """

    labels: Int64[Tensor, " B"] | Float[Tensor, "B K"] | None = None
    augment_labels: Float[Tensor, "B A"] | None = None
    embedding_transforms: tuple[tuple[int, EmbeddingTransform | None], ...] = field(default=())
    low_res: Float[Tensor, "B C h w"] | None = None

    def null(self) -> "Condition":
        """The same batch without its classes; what acted on their embedding goes, too."""
        if self.labels is None:
            return self
        labels = (
            torch.zeros_like(self.labels)
            if self.labels.is_floating_point()
            else torch.full_like(self.labels, NULL_CLASS)
        )
        return replace(self, labels=labels, embedding_transforms=())

    def with_embedding_transform(self, transform: EmbeddingTransform) -> "Condition":
        """Let ``transform`` act on the batch's class embedding, after what does so already."""
        if self.labels is None:
            return self
        blocks = self.embedding_transforms or ((len(self.labels), None),)
        if len(blocks) == 1 and blocks[0][1] is None:
            return replace(self, embedding_transforms=((len(self.labels), transform),))

        def both(embedding: Tensor) -> Tensor:
            return transform(_apply(blocks, embedding))

        return replace(self, embedding_transforms=((len(self.labels), both),))

    def transform_embedding(self, embedding: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """Apply each row block's transform to the class embedding."""
        if not self.embedding_transforms:
            return embedding
        return _apply(self.embedding_transforms, embedding)

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """Stack conditions row-wise, so that several guidance branches run as one batch."""
        first = conditions[0]
        if any((c.labels is None) != (first.labels is None) for c in conditions):
            raise ValueError(
                "cannot stack conditions with and without labels; use Condition.null()"
            )
        labels = None
        blocks: tuple[tuple[int, EmbeddingTransform | None], ...] = ()
        if first.labels is not None:
            stacked = [c.labels for c in conditions if c.labels is not None]
            labels = torch.cat(stacked)
            if any(c.embedding_transforms for c in conditions):
                blocks = tuple(
                    block
                    for c, rows in zip(conditions, stacked, strict=True)
                    for block in (c.embedding_transforms or ((len(rows), None),))
                )
        return Condition(
            labels=labels,
            augment_labels=_stack([c.augment_labels for c in conditions], "augment_labels"),
            embedding_transforms=blocks,
            low_res=_stack([c.low_res for c in conditions], "low_res"),
        )


def _stack(parts: Sequence[Tensor | None], what: str) -> Tensor | None:
    given = [part for part in parts if part is not None]
    if not given:
        return None
    if len(given) < len(parts):
        raise ValueError(f"cannot stack conditions with and without {what}")
    return torch.cat(given)


def _apply(blocks: tuple[tuple[int, EmbeddingTransform | None], ...], embedding: Tensor) -> Tensor:
    parts = torch.split(embedding, [rows for rows, _ in blocks])
    return torch.cat(
        [part if fn is None else fn(part) for part, (_, fn) in zip(parts, blocks, strict=True)]
    )
