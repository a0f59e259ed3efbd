"""Rows, pixels and blocks of PixelCNN++ as its decoder keeps them.

Rows are kept as (B, W + 2, channels), with zeros left and right, so that a convolution over a row
is a sum of matrix products over shifted views of one matrix, and one over the last two pixels a
product with a view of it: nothing is gathered or copied. What a pixel does is prepared as a list of
calls with their output buffers, because at this size a call takes longer to make than to run.

Legend: B batch, F filters, S = W + 2, N = B S, M = N - 2, D and E other numbers of channels.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Row = Float[Tensor, "B S D"]
Weights = Sequence[Sequence[Float[Tensor, "D E"]]]
"""Of a convolution: for each row of its kernel, for each column, a matrix."""
Call = Callable[[], Any]


def run(calls: Sequence[Call]) -> None:
    """Make one call after another."""
    for call in calls:
        call()


class Maker:
    """Makes buffers and matrices for one batch, on one device, in one dtype.

    Args:
        batch: B.
        device: where everything is.
        dtype: to compute in.
        vectors: what the class adds in each block, (B, 2 F), or None.
    """

    def __init__(
        self,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        vectors: Mapping[nn.Module, Tensor | None],
    ) -> None:
        self.batch, self.device, self.dtype, self.vectors = batch, device, dtype, vectors

    def row(self, width: int, channels: int) -> Row:
        """An empty row of images ``width`` pixels wide."""
        return torch.zeros(self.batch, width + 2, channels, device=self.device, dtype=self.dtype)

    def rows(self, width: int, channels: int) -> list[Row]:
        """The current row and the one before, in turn: that of row i has number i mod 2."""
        return [self.row(width, channels) for _ in range(2)]

    def matrix(self, layer: Any) -> Tensor:
        """Of a linear layer: (in, out), contiguous, so that it is read from front to back."""
        return layer.fold(self.dtype).detach().t().contiguous()

    def weights(self, conv: Any) -> Weights:
        """Of a convolution (out, in, kh, kw), or a transposed one (in, out, kh, kw)."""
        weight = conv.fold(self.dtype).detach()
        weight = weight.permute(2, 3, 0, 1) if conv.out_axis == 1 else weight.permute(2, 3, 1, 0)
        return [[matrix.contiguous() for matrix in per_row] for per_row in weight]

    def bias(self, *layers: Any) -> Tensor:
        """The sum of biases."""
        return sum(layer.bias.detach().to(self.dtype) for layer in layers)


class Node:
    """The outputs of one layer of a stream: this row and the one before, plain and activated.

    Attributes:
        plain: (B, S, F) for rows of even and of odd number.
        active: ``elu([x, -x])`` of them, (B, S, 2 F).
    """

    def __init__(self, width: int, channels: int, make: Maker) -> None:
        self.plain = make.rows(width, channels)
        self.active = make.rows(width, 2 * channels)

    def activate(self, p: int) -> None:
        """Fill in a whole row of `active`, and zeros at both ends."""
        channels = self.plain[p].shape[2]
        clear_ends(self.plain[p])
        self.active[p][..., :channels] = self.plain[p]
        _activate(self.active[p])

    def activation(self, p: int, j: int) -> list[Call]:
        """The same for pixel j alone."""
        x, active = self.plain[p][:, j + 1], self.active[p][:, j + 1]
        return [partial(active[:, : x.shape[1]].copy_, x), *_activation(active)]


def _activate(row: Row) -> None:
    """Turn [x, anything] into elu([x, -x])."""
    run(_activation(row))


def _activation(values: Tensor) -> list[Call]:
    half = values.shape[-1] // 2
    return [
        partial(torch.neg, values[..., :half], out=values[..., half:]),
        partial(F.elu_, values),
    ]


def clear_ends(row: Row) -> None:
    """Zeros left and right of the images."""
    row[:, 0] = 0
    row[:, -1] = 0


def inner(row: Row) -> Float[Tensor, "M D"]:
    """A row as one matrix (N - 2, D). At the seams between images it computes unused values."""
    return row.flatten(0, 1)[1:-1]


def convolve(out: Float[Tensor, "M E"], rows: Sequence[Row], weights: Weights) -> None:
    """Add a convolution over rows, top to bottom, one product for each pixel of the kernel."""
    for row, per_row in zip(rows, weights, strict=True):
        flat = row.flatten(0, 1)
        for offset, weight in enumerate(per_row):
            out.addmm_(flat[offset : offset + len(out)], weight)


def pair(row: Row, j: int) -> Float[Tensor, "B E"]:
    """Pixels j - 1 and j side by side, a view."""
    return row[:, j : j + 2].flatten(1)


class _Block:
    """What blocks of both streams share: the matrices, the rows between the two convolutions."""

    def __init__(self, block: Any, width: int, make: Maker) -> None:
        conv_in, conv_out, skip = block.conv_input.conv, block.conv_out.conv, block.nin_skip
        self.channels = len(conv_in.bias)
        self.bias_in = make.bias(conv_in, *([skip.lin_a] if skip is not None else []))
        # (1 or B, 1, 2 F): the class differs from image to image.
        bias = make.bias(conv_out)[None, None]
        vector = make.vectors[block]
        self.bias_out = bias if vector is None else bias + vector.to(make.dtype)[:, None]
        self.weights_in, self.weights_out = make.weights(conv_in), make.weights(conv_out)
        self.hidden = make.rows(width, 2 * self.channels)
        self.out = make.row(width, 2 * self.channels)
        self.skips = [] if skip is None else self._split(make.matrix(skip.lin_a))

    def _split(self, weight: Tensor) -> list[Tensor]:
        """The matrices (2 F, F) for each of the second inputs.

        ``elu([a, b, -a, -b])`` is what the layer sees; ``elu([a, -a])`` is what is kept.
        """
        parts = weight.unflatten(0, (2, -1, self.channels))  # sign, input, channel
        return [part.flatten(0, 1).contiguous() for part in parts.unbind(1)]


class UBlock(_Block):
    """A block of the stream ``u``: whole rows."""

    def run(self, p: int, x: Node, skip: Node | None, out: Node) -> None:
        """Compute a row of ``out`` from those of ``x`` and of the second input."""
        hidden, before = self.hidden[p], self.hidden[1 - p]
        h = inner(hidden)[:, : self.channels]
        h.copy_(self.bias_in)
        convolve(h, (x.active[1 - p], x.active[p]), self.weights_in)
        if skip is not None:
            h.addmm_(inner(skip.active[p]), self.skips[0])
        _activate(hidden)
        clear_ends(hidden)
        self.out.copy_(self.bias_out)
        convolve(inner(self.out), (before, hidden), self.weights_out)
        value, gate = self.out.chunk(2, -1)
        torch.addcmul(x.plain[p], value, gate.sigmoid_(), out=out.plain[p])
        out.activate(p)


class ULBlock(_Block):
    """A block of the stream ``ul``: one pixel after another.

    Args:
        x: input.
        u: second input, whole rows.
        skip: third input, pixel by pixel; None on the way down to low resolution.
        out: output.
        activate: whether anybody looks at the activated output.
    """

    def __init__(
        self,
        block: Any,
        width: int,
        make: Maker,
        *,
        x: Node,
        u: Node,
        skip: Node | None,
        out: Node,
        activate: bool,
    ) -> None:
        super().__init__(block, width, make)
        self.x, self.u, self.skip, self.to, self.activate = x, u, skip, out, activate
        self.above_in, here_in = self.weights_in
        self.above_out, here_out = self.weights_out
        self.here_in, self.here_out = torch.cat(list(here_in)), torch.cat(list(here_out))

    def begin_row(self, p: int) -> None:
        """Put down what the row above and ``u`` give to both convolutions."""
        h = inner(self.hidden[p])[:, : self.channels]
        h.copy_(self.bias_in)
        convolve(h, [self.x.active[1 - p]], [self.above_in])
        h.addmm_(inner(self.u.active[p]), self.skips[0])
        clear_ends(self.hidden[p])
        self.out.copy_(self.bias_out)
        convolve(inner(self.out), [self.hidden[1 - p]], [self.above_out])

    def calls(self, p: int, j: int) -> list[Call]:
        """What remains for pixel j."""
        hidden, out = self.hidden[p][:, j + 1], self.out[:, j + 1]
        value, gate = out.chunk(2, -1)
        h = hidden[:, : self.channels]
        return [
            partial(h.addmm_, pair(self.x.active[p], j), self.here_in),
            *(
                [partial(h.addmm_, self.skip.active[p][:, j + 1], self.skips[1])]
                if self.skip is not None
                else []
            ),
            *_activation(hidden),
            partial(out.addmm_, pair(self.hidden[p], j), self.here_out),
            gate.sigmoid_,
            partial(
                torch.addcmul,
                self.x.plain[p][:, j + 1],
                value,
                gate,
                out=self.to.plain[p][:, j + 1],
            ),
            *(self.to.activation(p, j) if self.activate else []),
        ]
