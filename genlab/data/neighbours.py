"""Nearest neighbours and membership in balls, exact, in blocks: no N x N matrix is kept.

Squared distances ``|x|^2 + |y|^2 - 2 <x, y>`` come from fast matrix products with a bound on their
error, and settle nearly every question. What the bound leaves open (which of two points is the
nearer one, on which side of a sphere a point lies) is settled by sums of squared differences in
float64. So ties are ties, copies have distance 0, and neither the number of threads nor the library
that multiplies changes a count.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from genlab.data.points import Points, pair_distances, products, share_out
from genlab.errors import EvaluationError

SPARE = 3
"""Candidates kept beside the k nearest, so that near-ties are among them."""

CHUNKS = 64
"""Groups of a block's columns whose minima are looked at before they are: half of the work."""


class Neighbours(NamedTuple):
    """The nearest points of each query, nearest first.

    Attributes:
        squared: squared Euclidean distances.
        points: which points they are.
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


def nearest(queries: Points, points: Points | None = None, k: int = 1) -> Neighbours:
    """The ``k`` nearest points of each query.

    Args:
        queries: about the same centre as the points.
        points: None takes the queries themselves, of which none is its own neighbour.
        k: neighbours of each.

    Raises:
        EvaluationError: there are fewer points than neighbours asked for.
    """
    return _nearest(queries, points, k, all_exact=True)


def squared_radii(points: Points, k: int) -> Float64[Tensor, " N"]:
    """The squared distance of each point to its k-th nearest other one; see `nearest`."""
    return _nearest(points, None, k, all_exact=False).squared[:, -1]


def crossings(
    a: Points,
    b: Points,
    radii_a: Float64[Tensor, " N"] | None,
    radii_b: Float64[Tensor, " M"] | None,
    *,
    closed: bool,
) -> tuple[Crossing, Crossing]:
    """How many points of each set lie in the balls around those of the other, both at once.

    Args:
        a: one set.
        b: the other, about the same centre.
        radii_a: squared radii of the balls around ``a``; None leaves them out.
        radii_b: squared radii of the balls around ``b``; None leaves them out.
        closed: whether a ball contains its surface.

    Returns:
        The points of ``b`` in the balls around ``a``, and those of ``a`` in the balls around ``b``;
        zeros for what was left out.
    """
    around_a = None if radii_a is None else _Balls(a, radii_a, b, closed)
    around_b = None if radii_b is None else _Balls(b, radii_b, a, closed)
    counts = _no_crossing(b, a), _no_crossing(a, b)

    def work(starts: tuple[int, int]) -> list[tuple[Crossing, _Part]]:
        i, j = starts
        between = products(a.block(i)[0], b.block(j)[0])
        parts = []
        if around_a is not None:
            parts.append((counts[0], around_a.count(between.T, j, i)))
        if around_b is not None:
            parts.append((counts[1], around_b.count(between, i, j)))
        return parts

    for parts in share_out(work, [(i, j) for i in a.starts for j in b.starts], a.rows.device):
        for crossing, part in parts:
            crossing.balls[part.rows] += part.balls
            crossing.points[part.first : part.first + len(part.points)] += part.points
    return counts


def _no_crossing(points: Points, centres: Points) -> Crossing:
    return Crossing(
        *(torch.zeros(len(s), dtype=torch.int64, device=s.rows.device) for s in (points, centres))
    )


class _Part(NamedTuple):
    """What one block adds to a `Crossing`: counts of these rows, and of centres from one on."""

    rows: Tensor
    balls: Tensor
    first: int
    points: Tensor


class _Balls:
    """Counts the points in the balls around centres, block by block."""

    def __init__(
        self, centres: Points, squared_radii: Tensor, points: Points, closed: bool
    ) -> None:
        self.centres, self.points, self.closed = centres, points, closed
        self.squared_radii = squared_radii
        self.approximate_radii = squared_radii.to(centres.dtype)

    def count(self, between: Tensor, i: int, j: int) -> _Part:
        """Look at a block of <x, y>, (points from i on, centres from j on)."""
        norms, centre_norms = self.points.block(i)[1], self.centres.block(j)[1]
        radii = self.approximate_radii[j : j + len(centre_norms)]
        more, less = 1 + self.centres.tolerance, 1 - self.centres.tolerance
        offsets, limits = centre_norms * less - radii * more, -less * norms
        # Most points are in no ball of most blocks: minima are quick, comparisons are not.
        nearly = torch.add(offsets, between, alpha=-2).amin(1)
        rows = (nearly <= limits).nonzero()[:, 0]
        cross, norms = between[rows] * -2, norms[rows, None]
        inside = cross + (centre_norms * more - radii * less) < -more * norms
        possible = cross + offsets <= limits[rows, None]
        self._settle(inside, possible, rows + i, j)
        return _Part(rows + i, inside.sum(1), j, inside.sum(0))

    def _settle(self, inside: Tensor, possible: Tensor, rows: Tensor, j: int) -> None:
        """Decide the pairs that are possible and not sure, in place."""
        p, q = possible.logical_xor_(inside).nonzero().T
        limit = self.squared_radii[q + j]
        exact = pair_distances(self.points.rows, self.centres.rows, rows[p], q + j)
        inside[p, q] = exact <= limit if self.closed else exact < limit


def _nearest(queries: Points, points: Points | None, k: int, *, all_exact: bool) -> Neighbours:
    """`nearest`; without ``all_exact`` only the last of each query's k distances is."""
    own = torch.arange(len(queries), device=queries.rows.device) if points is None else None
    points = queries if points is None else points
    others = len(points) - (own is not None)
    if others < k:
        raise EvaluationError(
            f"{k} neighbours of each image are asked for, and there are only {len(points)} images; "
            "give more images"
        )
    size = min(k + SPARE, others)
    neighbours, floor = _among_candidates(queries, points, own, k, size, all_exact)
    # A point that is no candidate is at least as far as the largest lower bound kept.
    doubtful = (neighbours.squared[:, -1] > floor) & (size < others)
    if doubtful.any() and queries.dtype != torch.float64:
        own = None if own is None else own[doubtful]
        few = queries.in_float64(doubtful)
        again, _ = _among_candidates(few, points.in_float64(), own, k, size, all_exact)
        neighbours.squared[doubtful], neighbours.points[doubtful] = again
    return neighbours


def _among_candidates(
    queries: Points, points: Points, own: Tensor | None, k: int, size: int, all_exact: bool
) -> tuple[Neighbours, Float64[Tensor, " N"]]:
    """The nearest of ``size`` candidates each, and the largest lower bound among these.

    Args:
        queries: see `nearest`.
        points: see `nearest`.
        own: the point that each query is itself, to be left out.
        k: see `nearest`.
        size: candidates.
        all_exact: see `_nearest`.
    """
    bounds, index = _candidates(queries, points, own, size)
    upper = bounds + 2 * points.tolerance * (queries.norms()[:, None] + points.norms()[index])
    # Those that may be among the k nearest: not surely farther than k others.
    open_ = bounds <= upper.kthvalue(k, dim=1, keepdim=True).values
    exact = torch.full_like(bounds, torch.inf, dtype=torch.float64)
    if not all_exact:
        # Those surely nearer than the k-th count, but by how much does not matter.
        nearer = upper < bounds[:, k - 1, None]
        exact[nearer] = bounds[nearer].double()
        open_ &= ~nearer
    rows, columns = open_.nonzero().T
    exact[rows, columns] = pair_distances(
        queries.rows, points.rows, rows, index[rows, columns], shared=True
    )
    squared, order = exact.topk(k, largest=False)
    return Neighbours(squared, index.gather(1, order)), bounds[:, -1].double()


def _candidates(
    queries: Points, points: Points, own: Tensor | None, size: int
) -> tuple[Tensor, Int64[Tensor, "N size"]]:
    """For each query the points with the smallest lower bounds of the distance, ascending."""
    shape, device = (len(queries), size), queries.rows.device
    bounds = torch.full(shape, torch.inf, dtype=queries.dtype, device=device)
    index = torch.zeros(shape, dtype=torch.int64, device=device)
    among_themselves = queries is points

    def work(starts: tuple[int, int]) -> list[tuple[int, Tensor, Tensor]]:
        i, j = starts
        lower = _lower_bounds(queries, points, i, j)
        if own is not None:
            _leave_out(lower, own[i : i + len(lower)] - j)
        best, at = _smallest(lower, size)
        parts = [(i, best, at + j)]
        if among_themselves and j > i:
            # The block stands for its mirror image, too.
            best, at = _smallest(lower.T, size)
            parts.append((j, best, at + i))
        return parts

    pairs = [
        (i, j) for i in queries.starts for j in points.starts if not among_themselves or j >= i
    ]
    for blocks in share_out(work, pairs, device):
        for first, best, at in blocks:
            rows = slice(first, first + len(best))
            best, at = torch.cat([bounds[rows], best], 1), torch.cat([index[rows], at], 1)
            bounds[rows], kept = best.topk(size, largest=False)
            index[rows] = at.gather(1, kept)
    return bounds, index


def _lower_bounds(queries: Points, points: Points, i: int, j: int) -> Tensor:
    """Lower bounds of the squared distances of two blocks."""
    (x, x_norms), (y, y_norms) = queries.block(i), points.block(j)
    less = 1 - points.tolerance
    return torch.add(x_norms[:, None] * less, products(x, y), alpha=-2).add_(y_norms * less)


def _smallest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` smallest numbers of each row, or all of them, and where they are; unsorted."""
    if x.shape[1] % CHUNKS or 2 * count > CHUNKS:
        return x.topk(min(count, x.shape[1]), largest=False, sorted=False)
    # They lie in the groups with the smallest minima; group c has the columns c, c + CHUNKS, ...
    minima = x
    while minima.shape[1] > CHUNKS and minima.shape[1] % (2 * CHUNKS) == 0:
        # Halving is as quick along either axis; a reduction over a middle one is not.
        minima = torch.minimum(*minima.chunk(2, dim=1))
    groups = x.unflatten(1, (-1, minima.shape[1]))
    chosen = minima.topk(count, largest=False, sorted=False).indices
    rows = torch.arange(len(x), device=x.device)[:, None]
    best, at = groups[rows, :, chosen].flatten(1).topk(count, largest=False, sorted=False)
    size = groups.shape[1]
    return best, chosen.gather(1, at // size) + at % size * groups.shape[2]


def _leave_out(lower: Tensor, own: Tensor) -> None:
    """Set each query's distance to itself to infinity, where it is in this block."""
    here = ((own >= 0) & (own < lower.shape[1])).nonzero()[:, 0]
    lower[here, own[here]] = torch.inf
