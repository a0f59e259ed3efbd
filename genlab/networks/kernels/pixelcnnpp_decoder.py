"""PixelCNN++ pixel by pixel: every layer computes one pixel, and nothing twice.

What depends on the rows above is computed for a whole row at once when the row begins: all of the
stream ``u``, and the share of every ``ul`` convolution that comes from ``u`` or from the row above.
What is left for a pixel are the pixel to its left and itself: half of the weights. The layers of
half and quarter resolution run at every second and fourth row and column.

Legend: B batch, C channels of the image, F filters, P parameters of a pixel's distribution.

Source of the idea: Ramachandran et al. 2017, arXiv:1704.06001.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.networks.autoregressive import PixelDecoder
from genlab.networks.kernels.pixelcnnpp_rows import (
    Call,
    Maker,
    Node,
    UBlock,
    ULBlock,
    clear_ends,
    convolve,
    inner,
    pair,
    run,
)
from genlab.networks.layers.pixelcnnpp_blocks import GatedResnet


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
        with torch.no_grad():
            vectors: dict[nn.Module, Tensor | None] = {
                block: network.class_vector(block, labels)
                for block in network.modules()
                if isinstance(block, GatedResnet)
            }
            make = Maker(len(labels), network.device, dtype, vectors)
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
    @override
    def params(self, i: int, j: int) -> Float[Tensor, "B P"]:
        if j == 0:
            self._start.begin_row(i)
            self._row(0, i)
        self._pixel(0, i, j)
        weight, bias = self._head
        return torch.addmm(bias, F.elu(self._levels[0].down_ul[-1].plain[i % 2][:, j + 1]), weight)

    @torch.no_grad()
    @override
    def put(self, i: int, j: int, pixel: Float[Tensor, "B C"]) -> None:
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
        run(level.up_calls[p][j])
        if number < len(self._passages) and p == 0 and j % 2 == 0:
            passage, half = self._passages[number], i // 2 % 2
            run(passage.halving[half][j // 2])
            self._pixel(number + 1, i // 2, j // 2)
            run(passage.doubling[half][j // 2])
        run(level.down_calls[p][j])


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

    def __init__(self, network: Any, number: int, width: int, make: Maker) -> None:
        self.width = width
        up, down = network.up_layers[number], network.down_layers[-1 - number]
        self.channels = len(network.u_init.conv.bias)
        lowest = number + 1 == len(network.up_layers)
        self.up_u, self.up_ul = (self._nodes(len(up.u_stream), make) for _ in range(2))
        self.down_u, self.down_ul = (self._nodes(len(down.u_stream), make) for _ in range(2))
        if lowest:  # here the way back begins where the way down ends
            self.down_u[0], self.down_ul[0] = self.up_u[-1], self.up_ul[-1]
        self.up_blocks = [UBlock(block, width, make) for block in up.u_stream]
        self.down_blocks = [UBlock(block, width, make) for block in down.u_stream]
        self.skips_u = self.up_u[-1 - lowest :: -1]
        skips_ul = self.up_ul[-1 - lowest :: -1]
        self.up_pixels = [
            ULBlock(
                block, width, make,
                x=self.up_ul[k], u=self.up_u[k + 1], skip=None, out=self.up_ul[k + 1],
                activate=True,
            )
            for k, block in enumerate(up.ul_stream)
        ]  # fmt: skip
        self.down_pixels = [
            ULBlock(
                block, width, make,
                x=self.down_ul[k], u=self.down_u[k + 1], skip=skips_ul[k], out=self.down_ul[k + 1],
                activate=k + 1 < len(down.ul_stream),
            )
            for k, block in enumerate(down.ul_stream)
        ]  # fmt: skip
        self.up_calls = self._schedule(self.up_ul[0], self.up_pixels)
        self.down_calls = self._schedule(None if lowest else self.down_ul[0], self.down_pixels)

    def _nodes(self, num_blocks: int, make: Maker) -> list[Node]:
        return [Node(self.width, self.channels, make) for _ in range(num_blocks + 1)]

    def _schedule(self, first: Node | None, blocks: list[ULBlock]) -> list[list[list[Call]]]:
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
        stages = zip(self.down_blocks, self.down_u, self.skips_u, self.down_u[1:], strict=False)
        for block, x, skip, out in stages:
            block.run(p, x, skip, out)
        for pixels in self.down_pixels:
            pixels.begin_row(p)


class _Passage:
    """Between two levels: half the resolution on the way down, twice on the way back.

    Args:
        network: the network.
        number: of the level below.
        above: the level of higher resolution.
        below: that of lower resolution.
        make: makes the matrices.

    Attributes:
        halving: for rows of the level below of even and odd number, for each column: how a pixel
            of its input comes out of the level above.
        doubling: the same: how four pixels above come out of one below.
    """

    def __init__(
        self, network: Any, number: int, above: _Level, below: _Level, make: Maker
    ) -> None:
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
                partial(out.addmm_, pair(row, 2 * j), weight)
                for row, weight in zip(rows, self.down_ul, strict=True)
            ),
        ]

    def _double_ul(self, half: int, j: int) -> list[Call]:
        x = self.below.down_ul[-1].plain[half][:, j + 1]
        return [
            partial(torch.addmm, self.bias_up, x, weight, out=pair(row, 2 * j + 1))
            for row, weight in zip(self.above.down_ul[0].plain, self.up_ul, strict=True)
        ]


class _Start:
    """The pixels themselves and the first convolutions, which shift by a row or a column."""

    def __init__(self, network: Any, width: int, first: _Level, make: Maker) -> None:
        from_above, from_left = network.ul_init[0].conv, network.ul_init[1].conv
        conv_u = network.u_init.conv
        self.u, self.ul = first.up_u[0], first.up_ul[0]
        self.width = width
        # Row i has number i mod 3: the stream u looks two rows back.
        self.rows = [make.row(width, conv_u.weight_v.shape[1]) for _ in range(3)]
        self.weights_u, self.bias_u = make.weights(conv_u), make.bias(conv_u)
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
            convolve(inner(u), above, self.weights_u)
            ul += self.bias_above
            convolve(inner(ul), above[1:], self.weights_above)
        ul[:, 2:-1] += above[1][:, 1:-2] @ self.corner + self.bias_left
        clear_ends(ul)
        self.rows[i % 3].zero_()

    def put(self, i: int, j: int, pixel: Float[Tensor, "B C"]) -> None:
        """Take in a pixel, for rows to come and for the next pixel of this one."""
        x = self.rows[i % 3][:, j + 1]
        x[:, :-1] = pixel
        x[:, -1] = 1
        if j + 1 < self.width:
            self.ul.plain[i % 2][:, j + 2].addmm_(x, self.left)
