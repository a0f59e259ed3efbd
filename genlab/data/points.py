"""Sets of rows (features, pixels) prepared for distances: products, error bounds, shared work."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from genlab.compute import choose, workers

BLOCK = 1024
"""Rows that meet as many others at a time: 4 MiB of float32 distances, which caches hold."""

PAIR_NUMBERS = 1 << 18
"""Numbers in the differences of pairs that are computed at a time: 2 MiB in float64."""

Rows = Float[Tensor, "_ d"] | UInt8[Tensor, "_ d"]
"""What distances are taken of: features, or pixels, which stay bytes until a block is used."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class Points:
    """Rows about a centre, with their squared norms, in the type that products are taken in.

    The centre cancels in differences; without it features far from 0 would lose digits. Sets that
    meet each other need the same one.

    Args:
        rows: finite. Those of many images are best given as pixels, with ``keep=False``: a quarter
            of the memory.
        centre: None takes the mean of the rows.
        dtype: of products; None is float32 on a CPU, and float64 on a GPU, which may round float32
            products to TF32.
        keep: whether to keep the centred rows, or to make each block anew when it is used.

    Attributes:
        tolerance: the error of a squared distance by products, as a share of both squared norms.
        starts: the first row of each block.
    """

    def __init__(
        self,
        rows: Rows,
        centre: Float[Tensor, " d"] | None = None,
        dtype: torch.dtype | None = None,
        *,
        keep: bool = True,
    ) -> None:
        centre = _centre(rows) if centre is None else centre
        self.rows, self.centre = rows, centre.to(rows.device)
        self.dtype = fast_type(rows.device) if dtype is None else dtype
        self.tolerance = product_tolerance(rows.shape[1], self.dtype)
        self.starts = range(0, len(rows), BLOCK)
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}
        if keep:
            blocks = share_out(self._centred, self.starts, rows.device)
            self._blocks = dict(zip(self.starts, blocks, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, start: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Up to `BLOCK` rows about the centre, and their squared norms."""
        return self._blocks[start] if start in self._blocks else self._centred(start)

    def norms(self) -> Float[Tensor, " N"]:
        """The squared norms of all rows."""
        return torch.cat([self.block(start)[1] for start in self.starts])

    def in_float64(self, chosen: Bool[Tensor, " N"] | None = None) -> "Points":
        """The same points, or some of them, for products in float64; made block by block when used.

        Args:
            chosen: which ones; None is all.
        """
        rows = self.rows if chosen is None else self.rows[chosen]
        return Points(rows, self.centre, torch.float64, keep=False)

    def _centred(self, start: int) -> tuple[Tensor, Tensor]:
        # Before the centre is gone, rounding would be relative to the larger numbers: not in a
        # narrower type than the rows have.
        wide = torch.promote_types(self.rows.dtype, self.dtype)
        rows = self.rows[start : start + BLOCK].to(wide) - self.centre.to(wide)
        rows = rows.to(self.dtype)
        return rows, rows.square().sum(1)


def together(a: Rows, b: Rows) -> tuple[Points, Points]:
    """Two sets about one centre, on the device of the first."""
    centre = _centre(b)
    return Points(a, centre), Points(b.to(a.device), centre)


def _centre(rows: Rows) -> Float[Tensor, " d"]:
    """The mean, up to rounding: any point near the rows will do, it cancels in differences."""
    return rows.mean(0, dtype=torch.promote_types(rows.dtype, torch.float32))


def product_tolerance(d: int, dtype: torch.dtype) -> float:
    """The error of a squared distance by products, as a share of both squared norms.

    With ``u`` half of the distance between 1 and the next number, a scalar product of d terms is
    off by at most ``d u |x| |y|``, in whatever order it is summed, and by more than
    ``10 sqrt(d) u |x| |y|`` with a probability below 1e-20 (Higham and Mary 2019, SIAM J. Sci.
    Comput. 41(5), Theorem 2.4). The rest covers rounding of the inputs, norms and sums.
    """
    return (min(d, 10 * math.sqrt(d)) + 16) * torch.finfo(dtype).eps / 2


def fast_type(device: torch.device) -> torch.dtype:
    """The type of products; see `Points`."""
    return torch.float32 if device.type == "cpu" else torch.float64


def products(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """``x @ y.T`` by the faster of the two libraries that torch has for it on a CPU."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _convolution_is_faster():
        return x @ y.T
    # As a 1x1 convolution over a picture of one column, laid out as channels_last.
    column = x.view(1, len(x), 1, x.shape[1]).permute(0, 3, 1, 2)
    product = F.conv2d(column, y[:, :, None, None])
    return product.permute(0, 2, 3, 1).reshape(len(x), len(y))


@cache
def _convolution_is_faster() -> bool:
    speeds = choose(torch.device("cpu")).speeds
    return speeds["convolution"] > 1.2 * speeds["product"]


def pair_distances(
    a: Rows,
    b: Rows,
    p: Int64[Tensor, " pairs"],
    q: Int64[Tensor, " pairs"],
    *,
    shared: bool = False,
) -> Float64[Tensor, " pairs"]:
    """Squared distances of pairs ``a[p], b[q]``, by differences in float64.

    Args:
        a: rows.
        b: rows.
        p: of ``a``.
        q: of ``b``.
        shared: whether to share the work out; not from within shared work.
    """
    at_a_time = max(1, PAIR_NUMBERS // a.shape[1])

    def work(pairs: tuple[Tensor, Tensor]) -> Tensor:
        i, j = pairs
        return (a[i].double() - b[j].double()).square_().sum(1)

    pairs = list(zip(p.split(at_a_time), q.split(at_a_time), strict=True))
    return torch.cat(list(share_out(work, pairs, a.device) if shared else map(work, pairs)))


def share_out(
    work: Callable[[Task], Result], tasks: Sequence[Task], device: torch.device
) -> Iterable[Result]:
    """The results of all tasks, in order; on a CPU every core does whole tasks.

    Split operation by operation, each of thousands of short ones would wait for the slowest core:
    on a busy machine of two cores that took 7 times as long.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(tasks) < 2:
        return map(work, tasks)
    return workers(threads).map(work, tasks)
