"""Inpainting masks: which pixels of an image are kept."""

import torch
from jaxtyping import Bool
from torch import Tensor

from genlab.errors import ConfigError

Keep = int | Bool[Tensor, "h w"] | Bool[Tensor, "N h w"]
"""What stands of images: so many rows from the top, or a mask of pixels for all or for each."""


def mask(keep: Keep, image_shape: tuple[int, int, int]) -> Bool[Tensor, "*rows H W"]:
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
    if keep.dtype != torch.bool or keep.ndim > 3 or tuple(keep.shape[-2:]) != (height, width):
        raise ConfigError(
            f"the mask of pixels to keep must hold true or false for each of {height}x{width} "
            f"pixels, got {tuple(keep.shape)} of {keep.dtype}"
        )
    if any(each.all() or not each.any() for each in keep.reshape(-1, height, width)):
        raise ConfigError("the mask keeps every pixel or none; mark those that are to stay")
    return keep
