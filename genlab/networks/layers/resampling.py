"""Resampling by two, as EDM's U-Nets do it, with the buffer names of the official checkpoints.

Blocks resample *before* the learned kernel (`Resampling`), except in the residual encoder of NCSN++
(`DownAfterConv2d`).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks.layers.initialised import Conv2d, Images, Init

Direction = Literal["up", "down"]


def filter_2d(taps: Sequence[float]) -> Float[Tensor, "1 1 n n"]:
    """The separable resampling filter of the given 1-d taps, normalised to sum 1.

    Raises:
        ConfigError: the number of taps is odd (images would shift by half a pixel), or their sum 0.
    """
    if not taps or len(taps) % 2 or sum(taps) == 0:  # no tensors: this also runs on the meta device
        raise ConfigError(
            f"resample_filter must have an even number of taps with a sum other than 0, got "
            f"{list(taps)}; use [1, 1] (DDPM++) or [1, 3, 3, 1] (NCSN++)"
        )
    row = torch.tensor(list(taps), dtype=torch.float32)
    return (row.outer(row) / row.sum().square())[None, None]


def is_box(taps: Sequence[float]) -> bool:
    """Whether the taps make the 2x2 box filter."""
    return len(taps) == 2 and taps[0] == taps[1]


def resample(
    x: Images, kernel: Float[Tensor, "1 1 n n"], direction: Direction, *, box: bool
) -> Float[Tensor, "B C h w"]:
    """Halve or double height and width with a depthwise filter, zeros beyond the border.

    Args:
        x: images or features, H and W even for "down".
        kernel: low-pass filter of sum 1, n even.
        direction: "down" filters, then keeps every second pixel; "up" is its transpose times 4.
        box: whether the kernel is the 2x2 box, which has faster names: mean and nearest neighbour.
    """
    if box:
        if direction == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    channels, padding = x.shape[1], (kernel.shape[-1] - 1) // 2
    weight = kernel.to(x.dtype).expand(channels, -1, -1, -1)
    if direction == "down":
        return F.conv2d(x, weight, stride=2, padding=padding, groups=channels)
    return F.conv_transpose2d(x, 4 * weight, stride=2, padding=padding, groups=channels)


class Resample(nn.Module):
    """Resampling without learned weights; holds only the filter."""

    resample_filter: Tensor

    def __init__(self, direction: Direction, taps: Sequence[float]) -> None:
        super().__init__()
        self.direction = direction
        self.register_buffer("resample_filter", filter_2d(taps))
        self.box = is_box(taps)

    def forward(self, x: Images) -> Float[Tensor, "B C h w"]:
        """(B, C, H, W) -> (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        return resample(x, self.resample_filter, self.direction, box=self.box)


class Resampling:
    """Resampling that is no module: it has nothing to save, and follows its input to any device.

    Args:
        direction: "down" or "up".
        taps: of the low-pass filter.
    """

    def __init__(self, direction: Direction, taps: Sequence[float]) -> None:
        self.direction, self.taps, self.box = direction, tuple(taps), is_box(taps)
        self._filter = filter_2d(taps)

    def __call__(self, x: Images) -> Float[Tensor, "B C h w"]:
        """(B, C, H, W) -> (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        if not self.box and self._filter.device != x.device:  # once: copies stall a device
            with torch.inference_mode(False):  # gradients may need it later
                self._filter = filter_2d(self.taps).to(x.device)
        return resample(x, self._filter, self.direction, box=self.box)


class DownAfterConv2d(nn.Module):
    """Convolve, then filter and keep every second pixel: the residual branch of NCSN++'s encoder.

    The learned kernel is padded far enough for the filter to need no padding of its own, so its
    border values are those of the convolution continued over zeros, not zeros. Adapters of
    convolutions do not suit it, and it is none for them: their output would need the filter, too.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        taps: Sequence[float],
        init: Init,
    ) -> None:
        super().__init__()
        convolution = Conv2d(in_channels, out_channels, kernel_size, init=init)
        self.weight, self.bias = convolution.weight, convolution.bias
        self.padding = kernel_size // 2 + (len(taps) - 1) // 2
        self.register_buffer("resample_filter", filter_2d(taps))
        self.box = is_box(taps)

    def forward(self, x: Images) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, H/2, W/2)."""
        h = F.conv2d(x, self.weight, padding=self.padding)
        if self.box:
            h = F.avg_pool2d(h, 2)
        else:
            weight = self.resample_filter.to(h.dtype).expand(h.shape[1], -1, -1, -1)
            h = F.conv2d(h, weight, stride=2, groups=h.shape[1])
        assert self.bias is not None
        return h + self.bias.to(h.dtype)[:, None, None]
