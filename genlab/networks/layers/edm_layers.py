"""Layers shared by EDM's U-Nets: linear, convolution and resampling layers, noise embeddings.

Blocks resample *before* the learned kernel (`Resampling`), except in the residual encoder of NCSN++
(`DownAfterConv2d`). Parameter and buffer names are those of the official EDM checkpoints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks.kernels import winograd
from genlab.networks.layers.precision import WideBuffers

Images = Float[Tensor, "B C H W"]
Direction = Literal["up", "down"]
Size = int | tuple[int, int]
"""Of a kernel: one number, or height and width."""


GELU_PIECE = 98304
"""Numbers that `gelu` computes at a time, for each core: 384 KiB, a fraction of its cache."""


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


def gelu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """GELU in its tanh form, ``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2``.

    Source: Hendrycks and Gimpel, arXiv:1606.08415, Sec. 2.
    """
    suits = x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
    if not suits or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    # torch's takes 1.7 times as long: tanh is slow, and (1 + tanh(u)) / 2 = sigmoid(2 u); and a
    # piece of the features stays in a core's cache from one operation to the next.
    size, slope = GELU_PIECE * torch.get_num_threads(), math.sqrt(8 / math.pi)
    result, constant = torch.empty_like(x), x.new_tensor(slope)
    for piece, out in zip(x.view(-1).split(size), result.view(-1).split(size), strict=True):
        torch.addcmul(constant, piece, piece, value=0.044715 * slope, out=out)
        out.mul_(piece).sigmoid_().mul_(piece)
    return result


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


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with EDM's number of groups, min(32, channels // 4).

    Raises:
        ConfigError: the channels cannot be split into that many groups.
    """
    groups = min(32, channels // 4)
    if groups == 0 or channels % groups:
        cure = "at least 4 channels" if groups == 0 else f"a multiple of {groups} there"
        raise ConfigError(
            f"a normalisation over {channels} channels (skip connections included) cannot be split "
            f"into {max(groups, 1)} equal groups of 4 or more; choose model_channels and "
            f"channel_mult to give {cure}"
        )
    return nn.GroupNorm(groups, channels, eps=eps)


def _cos_sin(t: Float[Tensor, " B"], frequencies: Float[Tensor, " F"]) -> Float[Tensor, "B C"]:
    phase = t.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def time_features(
    t: Float[Tensor, " B"], channels: int, *, endpoint: bool = False
) -> Float[Tensor, "B C"]:
    """[cos | sin] of timesteps at frequencies from 1 to 1 / 10000, in float32.

    Args:
        t: timesteps.
        channels: number of features; an odd one ends with a zero.
        endpoint: whether the last frequency is 1 / 10000 itself (diffusers' DiT) or one step before
            (ADM, DiT).
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = (-math.log(10000) * index / (half - endpoint)).exp()
    return F.pad(_cos_sin(t, frequencies), (0, channels % 2))


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise level at frequencies from 1 to 1 / 10000, as EDM has them.

    They are those of `time_features` but for their rounding, which large phases make visible.

    Args:
        channels: number of features, even.
        endpoint: whether the last frequency is 1 / 10000 itself (DDPM++) or one step before (ADM).
    """

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        half = channels // 2
        if channels % 2 or (endpoint and half < 2):
            raise ConfigError(
                f"a noise embedding needs an even number of at least 4 channels, got {channels}"
            )
        self.num_frequencies = half
        self.steps = half - 1 if endpoint else half

    def forward(self, c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """[cos | sin] features, float32."""
        index = torch.arange(self.num_frequencies, dtype=torch.float32, device=c_noise.device)
        return _cos_sin(c_noise, (1 / 10000) ** (index / self.steps))


class FourierEmbedding(WideBuffers):
    """Cosines and sines of the noise level at random frequencies, kept in the checkpoint (NCSN++).

    Half-precision frequencies would turn phases of many cycles into noise.

    Args:
        channels: number of features, even.
        scale: standard deviation of the frequencies, in cycles per unit of c_noise.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        if channels % 2:
            raise ConfigError(f"a noise embedding needs an even number of channels, got {channels}")
        self.register_buffer("freqs", scale * torch.randn(channels // 2))

    def forward(self, c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """[cos | sin] features, float32 or wider."""
        return _cos_sin(c_noise, 2 * math.pi * self.freqs)
