"""Small random moves of whole images, each by its own draw."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

BLACK = -1.0


def random_flip(
    images: Float[Tensor, "B C H W"], generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """Mirror each image left to right with probability 1/2."""
    draws = torch.rand(len(images), generator=generator, device=generator.device)
    flips = (draws < 0.5).to(images.device)
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


def random_shift(
    images: Float[Tensor, "B C H W"],
    most: int,
    generator: torch.Generator,
    fill: float = BLACK,
) -> Float[Tensor, "B C H W"]:
    """Move each image by -most ... most pixels along either axis, all equally likely.

    Args:
        images: in [-1, 1]; gradients flow back to them.
        most: pixels.
        generator: where the moves come from.
        fill: what comes in at the edges.
    """
    count, _, height, width = images.shape
    draws = torch.randint(
        2 * most + 1, (2, count, 1), generator=generator, device=generator.device
    ).to(images.device)
    padded = F.pad(images, (most, most, most, most), value=fill)
    rows = draws[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = draws[1] + torch.arange(width, device=images.device)  # (B, W)
    which = torch.arange(count, device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
