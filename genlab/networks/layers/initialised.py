"""Linear layers and convolutions with their own initialisation.

Parameter names are torch's, so official checkpoints fit and adapters find what they know.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.networks.kernels import winograd

Images = Float[Tensor, "B C H W"]
Size = int | tuple[int, int]
"""Of a kernel: one number, or height and width."""

MIN_ROWS = 8
"""Rows that a product has at least where an image's own few decide about it: of 1 to 3 rows the
libraries take other algorithms, which round otherwise (measured: MKL on a processor with AVX2)."""


@dataclass(frozen=True)
class Init:
    """How a layer's first weights are drawn (EDM's training from scratch).

    With fan-in and fan-out counted over the kernel, the bounds are sqrt(6 / (fan_in + fan_out)) for
    Xavier and sqrt(3 / fan_in) for Kaiming uniform numbers, the standard deviation 1 / sqrt(fan_in)
    for Kaiming normal ones.

    Attributes:
        scheme: distribution.
        weight: factor on the weights; 0 silences the layer.
        bias: factor on the biases, which are drawn with the same fans; 0 leaves them at 0.
    """

    scheme: Literal["xavier_uniform", "kaiming_uniform", "kaiming_normal"]
    weight: float = 1.0
    bias: float = 0.0

    @torch.no_grad()
    def __call__(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Draw the layer's weights and biases from torch's global generator."""
        fan_in = layer.weight[0].numel()
        fan_out = len(layer.weight) * layer.weight[0, 0].numel()
        self._draw(layer.weight, self.weight, fan_in, fan_out)
        if layer.bias is not None:
            self._draw(layer.bias, self.bias, fan_in, fan_out)

    def _draw(self, tensor: Tensor, factor: float, fan_in: int, fan_out: int) -> None:
        if self.scheme == "kaiming_normal":
            nn.init.normal_(tensor, std=factor / math.sqrt(fan_in))
            return
        variance = 2 / (fan_in + fan_out) if self.scheme == "xavier_uniform" else 1 / fan_in
        bound = factor * math.sqrt(3 * variance)
        nn.init.uniform_(tensor, -bound, bound)


class Linear(nn.Linear):
    """A linear layer with its own initialisation.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether it has one.
        init: how weights are drawn; None is torch's way.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, init: Init | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias)
        if init is None:
            super().reset_parameters()
        else:
            init(self)

    def reset_parameters(self) -> None:
        """Leave the parameters to the constructor's end, so that they are drawn once."""

    def forward(self, x: Float[Tensor, "*any C"]) -> Float[Tensor, "*any D"]:
        """(..., C) -> (..., D); a row comes out alike however few others there are."""
        few = x.ndim == 2 and len(x) < MIN_ROWS and x.device.type == "cpu"
        if not few or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        return super().forward(F.pad(x, (0, 0, 0, MIN_ROWS - len(x))))[: len(x)]


class TokenLinear(Linear):
    """A linear layer over many tokens.

    Attributes:
        use_convolution: whether to write the product as a 1x1 convolution in float32, which torch
            computes by another library; `genlab.compute` sets it where that one is faster.
    """

    use_convolution = False

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T D"]:
        """(B, T, C) -> (B, T, D)."""
        if not self.use_convolution or x.dtype != torch.float32:
            return super().forward(x)
        image = x[:, None].permute(0, 3, 1, 2)  # (B, C, 1, T), channels last as it lies in memory
        out = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1)[:, 0]


class Conv2d(nn.Conv2d):
    """A convolution with its own initialisation, which keeps height and width unless told not to.

    Adapters build further layers of the kind that they adapt (peft does), so the arguments are
    torch's, in torch's order.

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: of the kernel, odd.
        stride: of the kernel.
        padding: zeros beyond each border; None is half the kernel, which keeps height and width.
        dilation: of the kernel.
        groups: of channels.
        bias: whether it has one.
        init: how weights are drawn; None is torch's way.

    Attributes:
        use_winograd: whether to take Winograd's algorithm where it suits; `genlab.compute` sets
            it where it pays.
    """

    use_winograd = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str | None = None,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        init: Init | None = None,
    ) -> None:
        if padding is None:
            height, width = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
            padding = height // 2, width // 2
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        if init is None:
            super().reset_parameters()
        else:
            init(self)

    def reset_parameters(self) -> None:
        """Leave the parameters to the constructor's end, so that they are drawn once."""

    def forward(self, x: Images) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, H, W) where height and width are kept."""
        if self.use_winograd and self._is_plain() and winograd.suits(x, self.weight):
            return winograd.conv3x3(x, self.weight, self.bias)
        return super().forward(x)

    def _is_plain(self) -> bool:
        """Whether it is a convolution as the networks have them: others are an adapter's."""
        return (
            self.stride == self.dilation == (1, 1)
            and self.padding == (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
            and self.groups == 1
            and self.bias is not None
        )
