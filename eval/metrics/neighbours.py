"""Nearest neighbours and membership in balls, exact, in blocks: no N x N matrix is kept.

Squared distances ``|x|^2 + |y|^2 - 2 <x, y>`` come from fast matrix products with a bound on their
error, and settle nearly every question. What the bound leaves open (which of two points is
the nearer one, on which side of a sphere a point lies) is settled by sums of squared differences in
float64. So ties are ties, copies have distance 0, and neither the number of threads nor the library
that multiplies changes a count.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from genlab.compute import choose
from genlab.errors import EvaluationError

BLOCK = 2048
"""Rows that meet as many others at a time: 16 MiB of float32 distances."""

SPARE = 4
"""Candidates kept beside the k nearest, so that near-ties are among them."""

PAIR_NUMBERS = 1 << 22
"""Numbers (32 MiB in float64) in the differences of pairs that are computed at a time."""


class Neighbours(NamedTuple):
    """The nearest points of each query, nearest first.

    Attributes:
        squared: squared Euclidean distances.
        points: which ones they are.
    """

    squared: Float64[Tensor, "N k"]
    points: Int64[Tensor, "N k"]


class Crossing(NamedTuple):
    """Which points of one set lie in the balls around the points of another, as counts.

    Attributes:
        balls: for each point, the balls that it lies in.
        points: for each ball, the points that lie in it.
    """

    balls: Int64[Tensor, " N"]
    points: Int64[Tensor, " M"]


def nearest(
    queries: Float[Tensor, "N d"], points: Float[Tensor, "M d"] | None = None, k: int = 1
) -> Neighbours:
    """The ``k`` nearest points of each query.

    Args:
        queries: finite.
        points: finite; None takes the queries themselves, of which none is its own neighbour.
        k: neighbours of each.

    Raises:
        EvaluationError: there are fewer points than neighbours asked for.
    """
    own = torch.arange(len(queries), device=queries.device) if points is None else None
    points = queries if points is None else points.to(queries.device)
    if len(points) - (own is not None) < k:
        raise EvaluationError(
            f"{k} neighbours of each image are asked for, and there are only {len(points)} images; "
            "give more images"
        )
    found, doubtful = _nearest(queries, points, own, k, _fast_type(queries.device))
    if doubtful.any():
        again, _ = _nearest(
            queries[doubtful], points, None if own is None else own[doubtful], k, torch.float64
        )
        found.squared[doubtful], found.points[doubtful] = again
    return found


def crossings(
    a: Float[Tensor, "N d"],
    b: Float[Tensor, "M d"],
    radii_a: Float64[Tensor, " N"] | None,
    radii_b: Float64[Tensor, " M"] | None,
    *,
    closed: bool,
) -> tuple[Crossing, Crossing]:
    """How many points of each set lie in the balls around those of the other, both at once.

    Args:
        a: finite.
        b: finite.
        radii_a: squared radii of the balls around ``a``; None leaves them out.
        radii_b: squared radii of the balls around ``b``; None leaves them out.
        closed: whether a ball contains its surface.

    Returns:
        The points of ``b`` in the balls around ``a``, and those of ``a`` in the balls around ``b``;
        zeros for what was left out.
    """
    b = b.to(a.device)
    dtype = _fast_type(a.device)
    centre = a.mean(0)
    views = _Centred(a, centre, dtype), _Centred(b, centre, dtype)
    around_a = _Balls(a, radii_a, b, closed, dtype)
    around_b = _Balls(b, radii_b, a, closed, dtype)
    for i, x, x_norms in views[0].blocks(factor=-2):
        for j, y, y_norms in views[1].blocks():
            products = _products(x, y)
            around_a.count(products.T, y_norms, x_norms, j, i)
            around_b.count(products, x_norms, y_norms, i, j)
    return around_a.found, around_b.found


class _Centred:
    """Rows about a common centre, with their squared norms, in the type of products.

    The centre cancels in differences; without it features far from 0 would lose digits.
    """

    def __init__(self, rows: Tensor, centre: Tensor, dtype: torch.dtype) -> None:
        # Rounding before the centre is gone would be relative to the larger numbers.
        wide = torch.promote_types(rows.dtype, dtype)
        self.rows = (rows.to(wide) - centre.to(rows.device, wide)).to(dtype)
        self.norms = torch.linalg.vector_norm(self.rows, dim=1, dtype=torch.float64)
        self.norms = self.norms.square().to(dtype)

    def blocks(self, first: int = 0, factor: float = 1) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The number of the first row, multiples of the rows and their norms, block by block."""
        for start in range(first, len(self.rows), BLOCK):
            part = slice(start, start + BLOCK)
            rows = self.rows[part] if factor == 1 else self.rows[part] * factor
            yield start, rows, self.norms[part]


class _Candidates:
    """For each query the points whose lower bounds of the distance are smallest so far."""

    def __init__(self, count: int, size: int, like: Tensor, dtype: torch.dtype) -> None:
        shape = (count, size)
        self.bounds = torch.full(shape, torch.inf, dtype=dtype, device=like.device)
        self.index = torch.zeros(shape, dtype=torch.int64, device=like.device)

    def offer(self, bounds: Tensor, first_query: int, first_point: int) -> None:
        """Take in a block of lower bounds, (queries, points)."""
        size = self.bounds.shape[1]
        best, index = bounds.topk(min(size, bounds.shape[1]), largest=False)
        rows = slice(first_query, first_query + len(bounds))
        best = torch.cat([self.bounds[rows], best], 1)
        index = torch.cat([self.index[rows], index + first_point], 1)
        self.bounds[rows], kept = best.topk(size, largest=False)  # ascending
        self.index[rows] = index.gather(1, kept)


class _Balls:
    """Counts the points in the balls around centres, from approximate distances."""

    def __init__(
        self,
        centres: Tensor,
        squared_radii: Tensor | None,
        points: Tensor,
        closed: bool,
        dtype: torch.dtype,
    ) -> None:
        self.centres, self.points, self.closed = centres, points, closed
        self.squared_radii = squared_radii
        self.approximate_radii = None if squared_radii is None else squared_radii.to(dtype)
        self.tolerance = _tolerance(centres.shape[1], dtype)
        self.found = Crossing(
            *(torch.zeros(len(s), dtype=torch.int64, device=s.device) for s in (points, centres))
        )

    def count(self, products: Tensor, norms: Tensor, centre_norms: Tensor, i: int, j: int) -> None:
        """Take in a block of -2 <x, y>, (points from i on, centres from j on)."""
        if self.squared_radii is None or self.approximate_radii is None:
            return
        radii = self.approximate_radii[j : j + products.shape[1]]
        more, less = 1 + self.tolerance, 1 - self.tolerance
        inside = products + (centre_norms * more - radii * less) < -more * norms[:, None]
        possible = products + (centre_norms * less - radii * more) <= -less * norms[:, None]
        self._settle(inside, possible, i, j)
        # Sums of floats are vectorised, those of booleans are not.
        counts = inside.float()
        self.found.balls[i : i + len(counts)] += counts.sum(1).long()
        self.found.points[j : j + counts.shape[1]] += counts.sum(0).long()

    def _settle(self, inside: Tensor, possible: Tensor, i: int, j: int) -> None:
        """Decide the pairs that are possible and not sure, in place."""
        unclear = possible.logical_xor_(inside)
        rows = unclear.any(1).nonzero()[:, 0]  # few, and much quicker than all pairs' nonzero
        if len(rows) == 0:
            return
        p, q = unclear[rows].nonzero().T
        p = rows[p]
        assert self.squared_radii is not None
        limit = self.squared_radii[q + j]
        exact = _pair_distances(self.points, self.centres, p + i, q + j)
        inside[p, q] = exact <= limit if self.closed else exact < limit


def _nearest(
    queries: Tensor, points: Tensor, own: Tensor | None, k: int, dtype: torch.dtype
) -> tuple[Neighbours, Bool[Tensor, " N"]]:
    """`nearest`, and the queries for which candidates may be missing.

    Args:
        queries: see `nearest`.
        points: see `nearest`.
        own: the point that each query is itself, to be left out.
        k: see `nearest`.
        dtype: of the approximate distances.
    """
    others = len(points) - (own is not None)
    size = min(k + SPARE, others)
    candidates, widths = _collect(queries, points, own, size, dtype)
    # Those that may be among the k nearest: not surely farther than k others.
    limit = (candidates.bounds + widths).kthvalue(k, dim=1, keepdim=True).values
    rows, columns = (candidates.bounds <= limit).nonzero().T
    chosen = candidates.index[rows, columns]
    exact = torch.full(widths.shape, torch.inf, dtype=torch.float64, device=queries.device)
    exact[rows, columns] = _pair_distances(queries, points, rows, chosen)
    squared, order = exact.topk(k, largest=False)
    # A point that is no candidate is at least as far as the largest lower bound kept.
    doubtful = squared[:, -1] > candidates.bounds[:, -1].double()
    return Neighbours(squared, candidates.index.gather(1, order)), doubtful & (size < others)


def _collect(
    queries: Tensor, points: Tensor, own: Tensor | None, size: int, dtype: torch.dtype
) -> tuple[_Candidates, Tensor]:
    """Candidates, and how far the distance of each may lie above its lower bound, (N, size)."""
    candidates = _Candidates(len(queries), size, queries, dtype)
    centre = points.mean(0)
    among_themselves = queries is points
    Q = _Centred(queries, centre, dtype)
    P = Q if among_themselves else _Centred(points, centre, dtype)
    tolerance = _tolerance(points.shape[1], dtype)
    for i, x, x_norms in Q.blocks(factor=-2):
        # Among themselves the distances are symmetric: a block stands for its mirror image, too.
        for j, y, y_norms in P.blocks(first=i if among_themselves else 0):
            bounds = _products(x, y)
            bounds.add_(x_norms[:, None] * (1 - tolerance)).add_(y_norms * (1 - tolerance))
            if own is not None:
                _leave_out(bounds, own[i : i + len(x)] - j)
            candidates.offer(bounds, i, j)
            if among_themselves and j > i:
                candidates.offer(bounds.T.contiguous(), j, i)
    return candidates, 2 * tolerance * (Q.norms[:, None] + P.norms[candidates.index])


def _leave_out(bounds: Tensor, own: Tensor) -> None:
    """Set each query's distance to itself to infinity, where it is in this block."""
    here = ((own >= 0) & (own < bounds.shape[1])).nonzero()[:, 0]
    bounds[here, own[here]] = torch.inf


def _pair_distances(a: Tensor, b: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Squared distances of pairs ``a[p], b[q]``, by differences in float64."""
    at_a_time = max(1, PAIR_NUMBERS // a.shape[1])
    found = [
        (a[i].double() - b[j].double()).square_().sum(1)
        for i, j in zip(p.split(at_a_time), q.split(at_a_time), strict=True)
    ]
    return torch.cat(found)


def _tolerance(d: int, dtype: torch.dtype) -> float:
    """The error of a squared distance by products, as a share of both squared norms.

    With ``u`` half of the distance between 1 and the next number, a scalar product of d terms is
    off by at most ``d u |x| |y|``, in whatever order it is summed, and by more than
    ``10 sqrt(d) u |x| |y|`` with a probability below 1e-20 (Higham and Mary 2019, SIAM J. Sci.
    Comput. 41(5), Theorem 2.4). The rest covers rounding of the inputs, norms and sums.
    """
    return (min(d, 10 * math.sqrt(d)) + 16) * torch.finfo(dtype).eps / 2


def _fast_type(device: torch.device) -> torch.dtype:
    """The type of approximate distances: GPUs may round float32 products to TF32."""
    return torch.float32 if device.type == "cpu" else torch.float64


def _products(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.T`` by the faster of the two libraries that torch has for it on a CPU."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _convolution_is_faster():
        return x @ y.T
    # As a 1x1 convolution over a picture of one column, laid out as channels_last.
    column = x.view(1, len(x), 1, x.shape[1]).permute(0, 3, 1, 2)
    found = F.conv2d(column, y[:, :, None, None])
    return found.permute(0, 2, 3, 1).reshape(len(x), len(y))


@cache
def _convolution_is_faster() -> bool:
    speeds = choose(torch.device("cpu")).speeds
    return speeds["convolution"] > 1.2 * speeds["product"]
