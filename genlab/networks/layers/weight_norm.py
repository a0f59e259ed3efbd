"""Layers whose weight is a direction and a length: ``g v / |v|``, in the layout of old checkpoints.

Lengths are taken for each index of the weight's first axis. That is the output channel, but for
transposed convolutions it is the *input* channel, as torch's ``weight_norm`` has it (the TensorFlow
code of PixelCNN++ takes the output channel there, too).

Source: Salimans and Kingma 2016, arXiv:1602.07868.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.05
"""Of the directions at first (PixelCNN++'s code)."""


class WeightNorm(nn.Module):
    """A weight of norms ``weight_g`` and directions ``weight_v``, and a bias.

    Args:
        shape: of the weight.
        out_axis: axis of the output channels, 0, or 1 for transposed convolutions.
        init_scale: standard deviation of the outputs after `normalising`.
    """

    def __init__(self, shape: Sequence[int], *, out_axis: int = 0, init_scale: float = 1.0) -> None:
        super().__init__()
        self.out_axis, self.init_scale = out_axis, init_scale
        self.weight_v = nn.Parameter(torch.empty(tuple(shape)))
        self.weight_g = nn.Parameter(torch.empty(shape[0], *(1 for _ in shape[1:])))
        self.bias = nn.Parameter(torch.zeros(shape[out_axis]))
        nn.init.normal_(self.weight_v, std=INIT_STD)
        self._set(self.weight_v.detach())

    @property
    def weight(self) -> Tensor:
        """``g v / |v|``."""
        return self.fold(self.weight_v.dtype)

    def fold(self, dtype: torch.dtype) -> Tensor:
        """The weight computed in a dtype: not the same as cast to it afterwards."""
        v = self.weight_v.to(dtype)
        return v * (self.weight_g.to(dtype) / self._norm(v))

    def _norm(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).norm(dim=1).view_as(self.weight_g)

    @torch.no_grad()
    def _set(self, weight: Tensor) -> None:
        self.weight_v.copy_(weight)
        self.weight_g.copy_(self._norm(weight))

    @torch.no_grad()
    def _normalise(self, outputs: Tensor) -> Tensor:
        """Change weight and bias so that each output channel has mean 0 and the wanted spread."""
        rows = outputs.movedim(-1 if self.weight_v.ndim == 2 else 1, 0).flatten(1)
        factor = self.init_scale * (rows.var(1, correction=0) + 1e-10).rsqrt()
        mean = rows.mean(1)
        shape = [-1 if axis == self.out_axis else 1 for axis in range(self.weight_v.ndim)]
        self._set(self.weight * factor.view(shape))
        self.bias.copy_((self.bias - mean) * factor)
        column = (-1,) if self.weight_v.ndim == 2 else (-1, 1, 1)
        return (outputs - mean.view(column)) * factor.view(column)


class WeightNormLinear(WeightNorm):
    """A linear layer; see `WeightNorm`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__((out_features, in_features))

    def forward(self, x: Float[Tensor, "*B C"]) -> Float[Tensor, "*B D"]:
        """(..., C) -> (..., D)."""
        return F.linear(x, self.weight, self.bias)


class WeightNormConv2d(WeightNorm):
    """A convolution without padding; see `WeightNorm`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__((out_channels, in_channels, *kernel), init_scale=init_scale)
        self.stride = stride

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, h, w)."""
        return F.conv2d(x, self.weight, self.bias, self.stride)


class WeightNormConvTranspose2d(WeightNorm):
    """A transposed convolution of stride 2; see `WeightNorm`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int]) -> None:
        super().__init__((in_channels, out_channels, *kernel), out_axis=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, 2 H + kernel - 1, 2 W + kernel - 1)."""
        return F.conv_transpose2d(x, self.weight, self.bias, 2, output_padding=1)


@contextmanager
def normalising(network: nn.Module) -> Iterator[None]:
    """Run a network once within this, and every layer makes its outputs mean 0 and unit variance.

    Weights and biases change so that the outputs for this very batch have mean 0 and the layer's
    ``init_scale`` as standard deviation in each channel; the layers after see them so already.

    Source: Salimans and Kingma 2016, section 3.
    """
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, WeightNorm):
                hook = module.register_forward_hook(lambda m, _, out: m._normalise(out))
                stack.callback(hook.remove)
        yield
