"""The condition of a denoiser: class labels, the null class, transforms of the embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

NULL_CLASS = -1
"""The label of 'no class' in every network: a zero one-hot row in EDM, DiT's extra table row."""

EmbeddingTransform = Callable[[Float[Tensor, "B E"]], Float[Tensor, "B E"]]
"""A map from class embeddings to class embeddings (CADS is one)."""

Blocks = tuple[tuple[int, EmbeddingTransform | None], ...]
"""Row blocks in their order: (number of rows, what acts on their embedding or None)."""


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
        null_transforms: what acts on the embedding in their place once `null` has taken the classes
            away.
        low_res: the smaller images that a super-resolution network enlarges (B, C, h, w), in
            [-1, 1]; None for any other network. They are no class: `null` keeps them.
    """

    labels: Int64[Tensor, " B"] | Float[Tensor, "B K"] | None = None
    augment_labels: Float[Tensor, "B A"] | None = None
    embedding_transforms: Blocks = ()
    null_transforms: Blocks = ()
    low_res: Float[Tensor, "B C h w"] | None = None

    def null(self) -> "Condition":
        """The same batch without its classes; what acted on their embedding goes, too.

        What was said to act on the null class (`with_embedding_transform`) does so from here on.
        """
        if self.labels is None:
            return self
        labels = (
            torch.zeros_like(self.labels)
            if self.labels.is_floating_point()
            else torch.full_like(self.labels, NULL_CLASS)
        )
        return replace(self, labels=labels, embedding_transforms=self.null_transforms)

    def with_embedding_transform(
        self, transform: EmbeddingTransform, *, null: EmbeddingTransform | None = None
    ) -> "Condition":
        """Let ``transform`` act on the batch's class embedding, after what does so already.

        Args:
            transform: of the embedding of the whole batch.
            null: what acts in its place where `null` takes the classes away; by default nothing.
        """
        if self.labels is None:
            return self
        rows = len(self.labels)
        return replace(
            self,
            embedding_transforms=_followed_by(self.embedding_transforms, rows, transform),
            null_transforms=_followed_by(self.null_transforms, rows, null),
        )

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
        stacked = [c.labels for c in conditions if c.labels is not None]
        rows = [len(labels) for labels in stacked]
        return Condition(
            labels=torch.cat(stacked) if stacked else None,
            augment_labels=_stack([c.augment_labels for c in conditions], "augment_labels"),
            embedding_transforms=_joined([c.embedding_transforms for c in conditions], rows),
            null_transforms=_joined([c.null_transforms for c in conditions], rows),
            low_res=_stack([c.low_res for c in conditions], "low_res"),
        )


def _stack(parts: Sequence[Tensor | None], noun: str) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    if not tensors:
        return None
    if len(tensors) < len(parts):
        raise ValueError(f"cannot stack conditions with and without {noun}")
    return torch.cat(tensors)


def _followed_by(blocks: Blocks, rows: int, transform: EmbeddingTransform | None) -> Blocks:
    if transform is None:
        return blocks
    if all(before is None for _, before in blocks):
        return ((rows, transform),)

    def both(embedding: Tensor) -> Tensor:
        return transform(_apply(blocks, embedding))

    return ((rows, both),)


def _joined(parts: Sequence[Blocks], rows: Sequence[int]) -> Blocks:
    """The blocks of a stacked batch; none where nothing acts on any part."""
    if not any(parts):
        return ()
    return tuple(
        block
        for blocks, count in zip(parts, rows, strict=True)
        for block in (blocks or ((count, None),))
    )


def _apply(blocks: Blocks, embedding: Tensor) -> Tensor:
    parts = torch.split(embedding, [rows for rows, _ in blocks])
    return torch.cat(
        [part if fn is None else fn(part) for part, (_, fn) in zip(parts, blocks, strict=True)]
    )
