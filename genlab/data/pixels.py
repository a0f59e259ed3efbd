"""Conversion between floats in [-1, 1] and 8-bit pixels, by one rounding rule everywhere."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

PIXEL_RULE = "floor(clip(x * 127.5 + 128, 0, 255))"
"""How floats become pixels, as manifests and protocol cards say it (EDM and DiT do the same)."""


PICTURE_CHANNELS = (1, 3)
"""Channels of what can be looked at: grey, or RGB."""


def to_uint8(images: Float[Tensor, "*s"]) -> UInt8[Tensor, "*s"]:
    """Quantise images by `PIXEL_RULE`.

    Args:
        images: any shape, in [-1, 1]; what lies outside is clipped. Not-a-number has no pixel:
            check before.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 7.0])).tolist()
    [0, 128, 255, 255]
    """
    # Casting to an unsigned integer drops the fraction, which is floor for numbers that are not
    # negative.
    return (images * 127.5 + 128).clip(0, 255).to(torch.uint8)


def from_uint8(pixels: UInt8[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Pixels as float32 in [-1, 1]; `to_uint8` undoes it exactly.

    >>> from_uint8(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return pixels.to(torch.float32) / 127.5 - 1
