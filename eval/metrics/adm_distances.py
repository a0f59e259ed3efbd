"""Precision and recall in the float16 arithmetic of guided-diffusion's evaluator.

Published tables were made with it, and its numbers differ from exact ones by up to 1 % absolute, so
it is there by name and for comparison alone. Its TensorFlow graph on a CPU computes features and
all squared distances in float16, except for blocks of 10,000 x 10,000 in which one of them
overflows: these are computed in float32.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

BATCH = 10_000
"""Rows of either set in the evaluator's blocks, for each of which the fallback is decided anew."""

ROWS = 500
"""Rows of such a block at a time: 20 MB of distances."""

LANES, CHAINS, LEAF = 8, 4, 200
"""Of TensorFlow's float16 sums: vector width, partial sums, and vectors in an undivided sum."""

LARGEST = 65504.0
"""The largest float16."""


def adm_precision_recall(
    samples: Float[Tensor, "N d"],
    reference: Float[Tensor, "M d"],
    k: int = 3,
    *,
    from_samples: bool = False,
) -> tuple[float, float]:
    """Precision and recall as guided-diffusion's evaluator rounds them.

    Squared distances are ``max(|x|^2 - 2 <x, y> + |y|^2, 0)`` from left to right, each step rounded
    to float16; a radius is the (k + 1)-th smallest distance of a row to all rows, itself included,
    which rounding may put anywhere; a point on a sphere is inside.

    The evaluator has a second way (``ManifoldEstimator.evaluate``, not called by its main program)
    that takes distances from the points under test instead of from the reference; as the steps are
    rounded in turn, a sample can fall on the other side.

    Args:
        samples: finite.
        reference: finite.
        k: neighbours.
        from_samples: the second way.

    Returns:
        Precision and recall.

    Source: openai/guided-diffusion, commit 22e0df8, evaluator.py, ``compute_prec_recall``. Sums of
    more than 1600 features of a number that 8 does not divide are rounded in another order here.
    """
    samples, reference = samples.float(), reference.to(samples.device).float()
    real, fake = _radii(reference, k), _radii(samples, k)
    if from_samples:
        covered, _ = _inside(samples, reference, fake, real)
        recalled, _ = _inside(reference, samples, real, fake)
    else:
        recalled, covered = _inside(reference, samples, real, fake)
    return float(covered.double().mean()), float(recalled.double().mean())


def _radii(rows: Tensor, k: int) -> Tensor:
    radii = rows.new_empty(len(rows))
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        smallest = batch.new_empty(len(batch), 0)
        for others in rows.split(BATCH):
            here = [
                D.topk(min(k + 1, D.shape[1]), largest=False).values for D in _blocks(batch, others)
            ]
            smallest = torch.cat([smallest, torch.cat(here)], 1)
        radii[start : start + BATCH] = smallest.kthvalue(k + 1, dim=1).values
    return radii


def _inside(a: Tensor, b: Tensor, a_radii: Tensor, b_radii: Tensor) -> tuple[Tensor, Tensor]:
    """Which points of ``a`` lie in a ball around ``b``, and the other way round."""
    a_inside = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    b_inside = torch.zeros(len(b), dtype=torch.bool, device=b.device)
    for i in range(0, len(a), BATCH):
        for j in range(0, len(b), BATCH):
            columns = slice(j, j + BATCH)
            start = i
            for D in _blocks(a[i : i + BATCH], b[columns]):
                rows = slice(start, start + len(D))
                a_inside[rows] |= (b_radii[columns] >= D).any(1)
                b_inside[columns] |= (a_radii[rows, None] >= D).any(0)
                start += len(D)
    return a_inside, b_inside


def _blocks(U: Tensor, V: Tensor) -> Iterator[Tensor]:
    """Squared distances between two batches, some rows at a time, in float32."""
    u, v = U.half(), V.half()
    norms = half_sum(u.square()), half_sum(v.square())
    if _overflows(u, v, *norms):
        u, v = U, V
        norms = U.square().sum(1), V.square().sum(1)
    for start in range(0, len(u), ROWS):
        rows = slice(start, start + ROWS)
        yield _distances(u[rows], v, norms[0][rows], norms[1]).float()


def _distances(u: Tensor, v: Tensor, u_norms: Tensor, v_norms: Tensor) -> Tensor:
    # Products are summed in float32 and rounded once, also there.
    products = (u.float() @ v.float().T).to(u.dtype)
    return (u_norms[:, None] - 2 * products + v_norms).clamp_(min=0)


def _overflows(u: Tensor, v: Tensor, u_norms: Tensor, v_norms: Tensor) -> bool:
    """Whether any of the float16 distances is not finite."""
    a, b = float(u_norms.max()), float(v_norms.max())
    if a == torch.inf or b == torch.inf:
        return True
    if a + b + 2 * (a * b) ** 0.5 < 0.99 * LARGEST:
        return False
    parts = (
        _distances(u[i : i + ROWS], v, u_norms[i : i + ROWS], v_norms)
        for i in range(0, len(u), ROWS)
    )
    return not all(bool(D.isfinite().all()) for D in parts)


def half_sum(x: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
    """The sum of each row in float16, in TensorFlow's order.

    Four chains of 8-wide vectors, then these four and the vectors left over in turn, then the 8
    numbers in float32, then the numbers left over; above 1600 numbers, halves by themselves.

    Args:
        x: float16.
    """
    d = x.shape[1]
    if d > LANES * LEAF:
        split = LANES * -(-d // (2 * LANES))
        return half_sum(x[:, :split]) + half_sum(x[:, split:])
    vectors = x[:, : d // LANES * LANES].unflatten(1, (-1, LANES))
    chained = vectors.shape[1] // CHAINS * CHAINS
    chains = x.new_zeros(len(x), CHAINS, LANES)
    for j in range(0, chained, CHAINS):
        chains = chains + vectors[:, j : j + CHAINS]
    total = x.new_zeros(len(x), LANES)
    for vector in (*chains.unbind(1), *vectors[:, chained:].unbind(1)):
        total = total + vector
    rest = x.new_zeros(len(x))
    for column in x[:, d // LANES * LANES :].unbind(1):
        rest = rest + column
    return rest + total.float().sum(1).half()
