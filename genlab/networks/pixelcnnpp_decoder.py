"""PixelCNN++ pixel by pixel: every layer computes one pixel, and nothing twice.

What depends on the rows above is computed for a whole row at once when the row begins: all of the
stream ``u``, and the share of every ``ul`` convolution that comes from ``u`` or from the row above.
What is left for a pixel are the two pixels to its left and itself: half of the weights. The layers
of half and quarter resolution run at every second and fourth row and column.

Rows are kept as (B, W + 2, channels), with zeros left and right, so that a convolution over a row
is a sum of matrix products over shifted views of one matrix, and one over the last two pixels a
product with a view of it: nothing is gathered or copied. Everything that a pixel does is prepared
as a list of calls with their output buffers, because at this size a call takes longer to make than
to run.

Legend: B batch, F filters, S = W + 2, N = B S, D and E other numbers of channels.

Source of the idea: Ramachandran et al. 2017, arXiv:1704.06001.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.networks.autoregressive import PixelDecoder

Row = Float[Tensor, "B S D"]
Weights = Sequence[Sequence[Float[Tensor, "D E"]]]
"""Of a convolution: for each row of its kernel, for each column, a matrix."""
Call = Callable[[], Any]


class PixelCNNPPDecoder(PixelDecoder):
    """Decodes a batch of images; see `PixelDecoder`.

    Args:
        network: a `genlab.networks.pixelcnnpp.PixelCNNPP`; its weights are read now.
        labels: one for each image.
        height: of the images.
        width: of the images.
        dtype: to compute in.
    """

    def __init__(
        self,
        network: Any,
        labels: Int64[Tensor, " B"],
        height: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        make = _Maker(len(labels), network.device, dtype)
        with torch.no_grad():
            vectors = {
                name: network.class_vector(block, labels)
                for name, block in network.named_modules()
                if hasattr(block, "class_embedding")
            }
            make.vectors = {network.get_submodule(name): v for name, v in vectors.items()}
            self._levels = levels = [
                _Level(network, number, width >> number, make)
                for number in range(len(network.up_layers))
            ]
            self._passages = [
                _Passage(network, number, levels[number - 1], levels[number], make)
                for number in range(1, len(levels))
            ]
            self._start = _Start(network, width, levels[0], make)
            head = network.nin_out.lin_a
            self._head = make.matrix(head), make.bias(head)

    @torch.no_grad()
    def params(self, i: int, j: int) -> Float[Tensor, "B P"]:
        """See `PixelDecoder.params`."""
        if j == 0:
            self._start.begin_row(i)
            self._row(0, i)
        self._pixel(0, i, j)
        weight, bias = self._head
        return torch.addmm(bias, F.elu(self._levels[0].down_ul[-1].plain[i % 2][:, j + 1]), weight)

    @torch.no_grad()
    def put(self, i: int, j: int, pixel: Float[Tensor, "B C"]) -> None:
        """See `PixelDecoder.put`."""
        self._start.put(i, j, pixel)

    def _row(self, number: int, i: int) -> None:
        """All that a row of a level owes to the rows above; every second one goes on below."""
        level, p = self._levels[number], i % 2
        level.run_up(p)
        if number < len(self._passages) and p == 0:
            passage, half = self._passages[number], i // 2 % 2
            passage.halve_u(half)
            self._row(number + 1, i // 2)
            passage.double_u(half)
        level.run_down(p)

    def _pixel(self, number: int, i: int, j: int) -> None:
        level, p = self._levels[number], i % 2
        _run(level.up_calls[p][j])
        if number < len(self._passages) and p == 0 and j % 2 == 0:
            passage, half = self._passages[number], i // 2 % 2
            _run(passage.halving[half][j // 2])
            self._pixel(number + 1, i // 2, j // 2)
            _run(passage.doubling[half][j // 2])
        _run(level.down_calls[p][j])


def _run(calls: list[Call]) -> None:
    for call in calls:
        call()


class _Maker:
    """Makes buffers and matrices for one batch, on one device, in one dtype."""

    def __init__(self, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        self.batch, self.device, self.dtype = batch, device, dtype
        self.vectors: dict[nn.Module, Tensor | None] = {}

    def row(self, width: int, channels: int) -> Row:
        """An empty row of images ``width`` pixels wide."""
        return torch.zeros(self.batch, width + 2, channels, device=self.device, dtype=self.dtype)

    def rows(self, width: int, channels: int) -> list[Row]:
        """The current row and the one before, in turn: that of row i has number i mod 2."""
        return [self.row(width, channels) for _ in range(2)]

    def empty(self, channels: int) -> Tensor:
        """One pixel of each image."""
        return torch.empty(self.batch, channels, device=self.device, dtype=self.dtype)

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


class _Node:
    """The outputs of one layer of a stream: this row and the one before, plain and activated.

    Attributes:
        plain: (B, S, F) for rows of even and of odd number.
        active: ``elu([x, -x])`` of them, (B, S, 2 F).
    """

    def __init__(self, width: int, channels: int, make: _Maker) -> None:
        self.plain = make.rows(width, channels)
        self.active = make.rows(width, 2 * channels)

    def activate(self, p: int) -> None:
        """Fill in a whole row of `active`, and zeros at both ends."""
        channels = self.plain[p].shape[2]
        _clear_ends(self.plain[p])
        self.active[p][..., :channels] = self.plain[p]
        _activate(self.active[p])

    def activation(self, p: int, j: int) -> list[Call]:
        """The same for pixel j alone."""
        x, active = self.plain[p][:, j + 1], self.active[p][:, j + 1]
        return [partial(active[:, : x.shape[1]].copy_, x), *_activation(active)]


def _activate(row: Row) -> None:
    """Turn [x, anything] into elu([x, -x])."""
    _run(_activation(row))


def _activation(values: Tensor) -> list[Call]:
    half = values.shape[-1] // 2
    return [
        partial(torch.neg, values[..., :half], out=values[..., half:]),
        partial(F.elu_, values),
    ]


def _clear_ends(row: Row) -> None:
    row[:, 0] = 0
    row[:, -1] = 0


def _inner(row: Row) -> Float[Tensor, "M D"]:
    """A row as one matrix (N - 2, D). At the seams between images it computes what nobody reads."""
    return row.flatten(0, 1)[1:-1]


def _convolve(out: Float[Tensor, "M E"], rows: Sequence[Row], weights: Weights) -> None:
    """Add a convolution over rows, top to bottom, one product for each pixel of the kernel."""
    for row, per_row in zip(rows, weights, strict=True):
        flat = row.flatten(0, 1)
        for offset, weight in enumerate(per_row):
            out.addmm_(flat[offset : offset + len(out)], weight)


def _pair(row: Row, j: int) -> Float[Tensor, "B E"]:
    """Pixels j - 1 and j side by side, a view."""
    return row[:, j : j + 2].flatten(1)


class _Block:
    """What blocks of both streams share: the matrices, the rows between the two convolutions."""

    def __init__(self, block: Any, width: int, make: _Maker) -> None:
        inner, outer = block.conv_input.conv, block.conv_out.conv
        self.channels = len(inner.bias)
        skip = block.nin_skip
        self.bias_in = make.bias(inner, *([skip.lin_a] if skip is not None else []))
        # (1 or B, 1, 2 F): the class differs from image to image.
        bias = make.bias(outer)[None, None]
        vector = make.vectors[block]
        self.bias_out = bias if vector is None else bias + vector.to(make.dtype)[:, None]
        self.weights_in, self.weights_out = make.weights(inner), make.weights(outer)
        self.hidden = make.rows(width, 2 * self.channels)
        self.out = make.row(width, 2 * self.channels)
        self.skips = [] if skip is None else self._split(make.matrix(skip.lin_a))

    def _split(self, weight: Tensor) -> list[Tensor]:
        """The matrices (2 F, F) for each of the second inputs.

        ``elu([a, b, -a, -b])`` is what the layer sees; ``elu([a, -a])`` is what is kept.
        """
        parts = weight.unflatten(0, (2, -1, self.channels))  # sign, input, channel
        return [part.flatten(0, 1).contiguous() for part in parts.unbind(1)]


class _UBlock(_Block):
    """A block of the stream ``u``: whole rows."""

    def run(self, p: int, x: _Node, skip: _Node | None, out: _Node) -> None:
        """Compute a row of ``out`` from those of ``x`` and of the second input."""
        hidden, before = self.hidden[p], self.hidden[1 - p]
        h = _inner(hidden)[:, : self.channels]
        h.copy_(self.bias_in)
        _convolve(h, (x.active[1 - p], x.active[p]), self.weights_in)
        if skip is not None:
            h.addmm_(_inner(skip.active[p]), self.skips[0])
        _activate(hidden)
        _clear_ends(hidden)
        self.out.copy_(self.bias_out)
        _convolve(_inner(self.out), (before, hidden), self.weights_out)
        value, gate = self.out.chunk(2, -1)
        torch.addcmul(x.plain[p], value, gate.sigmoid_(), out=out.plain[p])
        out.activate(p)


class _ULBlock(_Block):
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
        make: _Maker,
        *,
        x: _Node,
        u: _Node,
        skip: _Node | None,
        out: _Node,
        activate: bool,
    ) -> None:
        super().__init__(block, width, make)
        self.x, self.u, self.skip, self.to, self.activate = x, u, skip, out, activate
        self.here_in, self.here_out = (
            torch.cat(list(weights[1])) for weights in (self.weights_in, self.weights_out)
        )

    def begin_row(self, p: int) -> None:
        """Put down what the row above and ``u`` give to both convolutions."""
        h = _inner(self.hidden[p])[:, : self.channels]
        h.copy_(self.bias_in)
        _convolve(h, self.x.active[1 - p : 2 - p], self.weights_in[:1])
        h.addmm_(_inner(self.u.active[p]), self.skips[0])
        _clear_ends(self.hidden[p])
        self.out.copy_(self.bias_out)
        _convolve(_inner(self.out), self.hidden[1 - p : 2 - p], self.weights_out[:1])

    def calls(self, p: int, j: int) -> list[Call]:
        """What remains for pixel j."""
        hidden, out = self.hidden[p][:, j + 1], self.out[:, j + 1]
        value, gate = out.chunk(2, -1)
        h = hidden[:, : self.channels]
        return [
            partial(h.addmm_, _pair(self.x.active[p], j), self.here_in),
            *(
                [partial(h.addmm_, self.skip.active[p][:, j + 1], self.skips[1])]
                if self.skip is not None
                else []
            ),
            *_activation(hidden),
            partial(out.addmm_, _pair(self.hidden[p], j), self.here_out),
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


class _Level:
    """Both streams at one resolution, on the way down to low resolution and up again.

    Attributes:
        up_u: what the stream ``u`` gives on the way down, the first entry being its input (the
            network calls this direction "up").
        up_ul: the same of ``ul``.
        down_u: the same on the way back.
        down_ul: the same of ``ul``.
        up_calls: for rows of even and odd number, for each column: what a pixel does.
        down_calls: the same on the way back.
    """

    def __init__(self, network: Any, number: int, width: int, make: _Maker) -> None:
        self.width = width
        up, down = network.up_layers[number], network.down_layers[-1 - number]
        self.channels = len(network.u_init.conv.bias)
        lowest = number + 1 == len(network.up_layers)
        self.up_u, self.up_ul = (self._nodes(len(up.u_stream), make) for _ in range(2))
        self.down_u, self.down_ul = (self._nodes(len(down.u_stream), make) for _ in range(2))
        if lowest:  # here the way back begins where the way down ends
            self.down_u[0], self.down_ul[0] = self.up_u[-1], self.up_ul[-1]
        self.up_blocks = [_UBlock(block, width, make) for block in up.u_stream]
        self.down_blocks = [_UBlock(block, width, make) for block in down.u_stream]
        self.skips_u = self.up_u[-1 - lowest :: -1]
        skips_ul = self.up_ul[-1 - lowest :: -1]
        self.up_pixels = [
            _ULBlock(
                block, width, make,
                x=self.up_ul[k], u=self.up_u[k + 1], skip=None, out=self.up_ul[k + 1],
                activate=True,
            )
            for k, block in enumerate(up.ul_stream)
        ]  # fmt: skip
        self.down_pixels = [
            _ULBlock(
                block, width, make,
                x=self.down_ul[k], u=self.down_u[k + 1], skip=skips_ul[k], out=self.down_ul[k + 1],
                activate=k + 1 < len(down.ul_stream),
            )
            for k, block in enumerate(down.ul_stream)
        ]  # fmt: skip
        self.up_calls = self._schedule(self.up_ul[0], self.up_pixels)
        self.down_calls = self._schedule(None if lowest else self.down_ul[0], self.down_pixels)

    def _nodes(self, num_blocks: int, make: _Maker) -> list[_Node]:
        return [_Node(self.width, self.channels, make) for _ in range(num_blocks + 1)]

    def _schedule(self, first: _Node | None, blocks: list[_ULBlock]) -> list[list[list[Call]]]:
        def pixel(p: int, j: int) -> list[Call]:
            begin = [] if first is None else first.activation(p, j)
            return begin + [call for block in blocks for call in block.calls(p, j)]

        return [[pixel(p, j) for j in range(self.width)] for p in range(2)]

    def run_up(self, p: int) -> None:
        """A row on the way down, its input being there."""
        self.up_u[0].activate(p)
        for block, x, out in zip(self.up_blocks, self.up_u, self.up_u[1:], strict=False):
            block.run(p, x, None, out)
        for pixels in self.up_pixels:
            pixels.begin_row(p)

    def run_down(self, p: int) -> None:
        """A row on the way back, its input being there."""
        self.down_u[0].activate(p)
        both = zip(self.down_blocks, self.down_u, self.skips_u, self.down_u[1:], strict=False)
        for block, x, skip, out in both:
            block.run(p, x, skip, out)
        for pixels in self.down_pixels:
            pixels.begin_row(p)


class _Passage:
    """Between two levels: half the resolution on the way down, twice on the way back.

    Attributes:
        halving: for rows of the level below of even and odd number, for each column: how a pixel
            of its input comes out of the level above.
        doubling: the same: how four pixels above come out of one below.
    """

    def __init__(self, network: Any, number: int, above: _Level, below: _Level, make: _Maker):
        """``number`` is that of the level below."""
        back = len(network.up_layers) - 1 - number
        down_u, up_u = network.downsize_u_stream[number - 1].conv, network.upsize_u_stream[back]
        down_ul, up_ul = network.downsize_ul_stream[number - 1].conv, network.upsize_ul_stream[back]
        self.above, self.below = above, below
        self.down_u = make.weights(down_u), make.bias(down_u)
        self.up_u = make.weights(up_u.deconv), make.bias(up_u.deconv)
        self.down_ul = [torch.cat(list(per_row)) for per_row in make.weights(down_ul)]
        self.up_ul = [torch.cat(list(per_row), 1) for per_row in make.weights(up_ul.deconv)]
        self.bias_down, self.bias_up = make.bias(down_ul), make.bias(up_ul.deconv).repeat(2)
        columns = range(below.width)
        self.halving = [[self._halve_ul(half, j) for j in columns] for half in range(2)]
        self.doubling = [[self._double_ul(half, j) for j in columns] for half in range(2)]

    def halve_u(self, half: int) -> None:
        """A row of the level below, of number ``half`` mod 2, from one of even number above."""
        weights, bias = self.down_u
        out = self.below.up_u[0].plain[half][:, 1:-1]
        out.copy_(bias)
        for row, per_row in zip(reversed(self.above.up_u[-1].plain), weights, strict=True):
            for offset, weight in enumerate(per_row):
                out += row[:, offset : offset + self.above.width : 2] @ weight

    def double_u(self, half: int) -> None:
        """Two rows of the level above from one below."""
        weights, bias = self.up_u
        x = self.below.down_u[-1].plain[half]
        for out, (left, middle, right) in zip(self.above.down_u[0].plain, weights, strict=True):
            # Column c takes from j with c = 2 j + k - 1, k being the column of the kernel.
            out[:, 1:-1:2] = x[:, 1:-1] @ middle + bias
            out[:, 2:-1:2] = x[:, 1:-1] @ right + x[:, 2:] @ left + bias

    def _halve_ul(self, half: int, j: int) -> list[Call]:
        out = self.below.up_ul[0].plain[half][:, j + 1]
        rows = reversed(self.above.up_ul[-1].plain)  # the one of odd number is the one before
        return [
            partial(out.copy_, self.bias_down),
            *(
                partial(out.addmm_, _pair(row, 2 * j), weight)
                for row, weight in zip(rows, self.down_ul, strict=True)
            ),
        ]

    def _double_ul(self, half: int, j: int) -> list[Call]:
        x = self.below.down_ul[-1].plain[half][:, j + 1]
        return [
            partial(torch.addmm, self.bias_up, x, weight, out=_pair(row, 2 * j + 1))
            for row, weight in zip(self.above.down_ul[0].plain, self.up_ul, strict=True)
        ]


class _Start:
    """The pixels themselves and the first convolutions, which shift by a row or a column."""

    def __init__(self, network: Any, width: int, first: _Level, make: _Maker) -> None:
        from_above, from_left = network.ul_init[0].conv, network.ul_init[1].conv
        self.channels = network.u_init.conv.weight_v.shape[1]
        self.u, self.ul = first.up_u[0], first.up_ul[0]
        self.width = width
        self.rows = [make.row(width, self.channels) for _ in range(3)]
        self.weights_u, self.bias_u = (
            make.weights(network.u_init.conv),
            make.bias(network.u_init.conv),
        )
        self.weights_above, self.bias_above = make.weights(from_above), make.bias(from_above)
        ((self.corner,), (self.left,)) = make.weights(from_left)
        self.bias_left = make.bias(from_left)

    def begin_row(self, i: int) -> None:
        """Compute what row i of both streams gets from the rows above."""
        u, ul = self.u.plain[i % 2], self.ul.plain[i % 2]
        above = [self.rows[(i - 2) % 3], self.rows[(i - 1) % 3]]
        u.zero_()
        ul.zero_()
        if i > 0:
            u += self.bias_u
            _convolve(_inner(u), above, self.weights_u)
            ul += self.bias_above
            _convolve(_inner(ul), above[1:], self.weights_above)
        ul[:, 2:-1] += above[1][:, 1:-2] @ self.corner + self.bias_left
        _clear_ends(ul)
        self.rows[i % 3].zero_()

    def put(self, i: int, j: int, pixel: Float[Tensor, "B C"]) -> None:
        """Take in a pixel, for rows to come and for the next pixel of this one."""
        x = self.rows[i % 3][:, j + 1]
        x[:, :-1] = pixel
        x[:, -1] = 1
        if j + 1 < self.width:
            self.ul.plain[i % 2][:, j + 2].addmm_(x, self.left)
