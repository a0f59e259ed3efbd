"""In-painting: which pixels of an image stand."""

import torch
from jaxtyping import Bool
from torch import Tensor

from genlab.errors import ConfigError

Keep = int | Bool[Tensor, "h w"]
"""What stands of an image: so many rows from the top, or a mask of pixels."""


def mask(keep: Keep, image_shape: tuple[int, int, int]) -> Bool[Tensor, "H W"]:
    """Which pixels are kept.

    Raises:
        ConfigError: there is nothing to keep or nothing to draw, or the mask is of another shape.
    """
    _, height, width = image_shape
    if isinstance(keep, int):
        if not 0 < keep < height:
            raise ConfigError(
                f"of images with {height} rows, 1 to {height - 1} can be kept, got keep={keep}"
            )
        return (torch.arange(height) < keep)[:, None].expand(height, width).clone()
    if keep.dtype != torch.bool or tuple(keep.shape) != (height, width):
        raise ConfigError(
            f"the mask of pixels to keep must hold true or false for each of {height}x{width} "
            f"pixels, got {tuple(keep.shape)} of {keep.dtype}"
        )
    if keep.all() or not keep.any():
        raise ConfigError("the mask keeps every pixel or none; mark those that are to stay")
    return keep
