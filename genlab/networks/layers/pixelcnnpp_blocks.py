"""The layers of PixelCNN++: shifted convolutions, and the gated residual block made of them.

Legend: B batch, F channels, D and G other numbers of channels, h and w height and width, e and f
those of the result.

Source: Salimans et al. 2017, arXiv:1701.05517, section 2.3 to 2.5. Parameter names are those of the
PyTorch port pclucas14/pixel-cnn-pp.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.networks.layers.weight_norm import (
    WeightNormConv2d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
)

Features = Float[Tensor, "B F h w"]


def concat_elu(x: Features) -> Float[Tensor, "B G h w"]:
    """``elu([x, -x])``: twice the channels."""
    return F.elu(torch.cat([x, -x], 1))


class DownShiftedConv2d(nn.Module):
    """A convolution that sees rows up to the pixel's own, left and right of it alike.

    Args:
        in_channels: F.
        out_channels: D.
        kernel: height and (odd) width.
        stride: 2 halves height and width.
        shift: move the outputs down by one row, so that a pixel sees the rows above only; the first
            row is 0.
        init_scale: see `genlab.networks.layers.weight_norm.WeightNorm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (2, 3),
        *,
        stride: int = 1,
        shift: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        side = (kernel[1] - 1) // 2
        self.padding = (side, side, kernel[0] - 1, 0)
        self.shift = shift
        self.conv = WeightNormConv2d(
            in_channels, out_channels, kernel, stride=stride, init_scale=init_scale
        )

    def forward(self, x: Features) -> Float[Tensor, "B D e f"]:
        """(B, F, h, w) -> (B, D, h / stride, w / stride)."""
        out = self.conv(F.pad(x, self.padding))
        return F.pad(out, (0, 0, 1, -1)) if self.shift else out


class DownRightShiftedConv2d(nn.Module):
    """A convolution that sees the pixel and what is above and to the left of it.

    Args:
        in_channels: F.
        out_channels: D.
        kernel: height and width.
        stride: 2 halves height and width.
        shift: move the outputs right by one column, so that a pixel does not see itself; the first
            column is 0.
        init_scale: see `genlab.networks.layers.weight_norm.WeightNorm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int] = (2, 2),
        *,
        stride: int = 1,
        shift: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.padding = (kernel[1] - 1, 0, kernel[0] - 1, 0)
        self.shift = shift
        self.conv = WeightNormConv2d(
            in_channels, out_channels, kernel, stride=stride, init_scale=init_scale
        )

    def forward(self, x: Features) -> Float[Tensor, "B D e f"]:
        """(B, F, h, w) -> (B, D, h / stride, w / stride)."""
        out = self.conv(F.pad(x, self.padding))
        return F.pad(out, (1, -1)) if self.shift else out


class DownShiftedDeconv2d(nn.Module):
    """Doubles height and width; a row sees the row that it came from and none below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deconv = WeightNormConvTranspose2d(channels, channels, (2, 3))

    def forward(self, x: Features) -> Float[Tensor, "B F e f"]:
        """(B, F, h, w) -> (B, F, 2 h, 2 w)."""
        return self.deconv(x)[:, :, :-1, 1:-1]


class DownRightShiftedDeconv2d(nn.Module):
    """Doubles height and width; a pixel sees the one that it came from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deconv = WeightNormConvTranspose2d(channels, channels, (2, 2))

    def forward(self, x: Features) -> Float[Tensor, "B F e f"]:
        """(B, F, h, w) -> (B, F, 2 h, 2 w)."""
        return self.deconv(x)[:, :, :-1, :-1]


class Pointwise(nn.Module):
    """A 1x1 convolution, stored as a linear layer."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin_a = WeightNormLinear(in_channels, out_channels)

    def forward(self, x: Features) -> Float[Tensor, "B D h w"]:
        """(B, F, h, w) -> (B, D, h, w)."""
        return self.lin_a(x.movedim(1, -1)).movedim(-1, 1)


ShiftedConv = type[DownShiftedConv2d] | type[DownRightShiftedConv2d]


class GatedResnet(nn.Module):
    """A residual block with a gate at its end and perhaps a second input.

    Args:
        num_filters: F.
        conv: of the stream that the block belongs to.
        skips: channels of the second input, in multiples of F; 0 for none.
        label_dim: number of classes; 0 for none.
        dropout: of elements, after the first convolution.

    Departures from the port: dropout drops elements, as in the paper's own code, not whole
    channels; and a class can be given, which the port does not know.
    """

    def __init__(
        self, num_filters: int, conv: ShiftedConv, *, skips: int, label_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv_input = conv(2 * num_filters, num_filters)
        self.nin_skip = Pointwise(2 * skips * num_filters, num_filters) if skips else None
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv(2 * num_filters, 2 * num_filters, init_scale=0.1)
        self.class_embedding = nn.Embedding(label_dim, 2 * num_filters) if label_dim else None
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.05)

    def forward(
        self,
        x: Features,
        skip: Float[Tensor, "B S h w"] | None = None,
        class_vector: Float[Tensor, "#B E"] | None = None,
    ) -> Features:
        """(B, F, h, w), second input (B, skips F, h, w), class (B, 2 F) -> (B, F, h, w)."""
        h = self.conv_input(concat_elu(x))
        if self.nin_skip is not None and skip is not None:
            h = h + self.nin_skip(concat_elu(skip))
        h = self.conv_out(self.dropout(concat_elu(h)))
        if class_vector is not None:
            h = h + class_vector[:, :, None, None]
        value, gate = h.chunk(2, 1)
        return x + value * gate.sigmoid()


class Streams(nn.Module):
    """The blocks of both streams at one level, in one direction.

    Args:
        num_blocks: in each stream.
        num_filters: F.
        skips: of the blocks of (``u``, ``ul``); see `GatedResnet`.
        label_dim: number of classes; 0 for none.
        dropout: see `GatedResnet`.
    """

    def __init__(
        self,
        num_blocks: int,
        num_filters: int,
        skips: tuple[int, int],
        *,
        label_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()

        def stream(conv: ShiftedConv, skips: int) -> nn.ModuleList:
            return nn.ModuleList(
                GatedResnet(num_filters, conv, skips=skips, label_dim=label_dim, dropout=dropout)
                for _ in range(num_blocks)
            )

        self.u_stream = stream(DownShiftedConv2d, skips[0])
        self.ul_stream = stream(DownRightShiftedConv2d, skips[1])
