"""Neighbours, balls, and what is made of them: against all pairs one by one, and exact truths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genlab.data import neighbours, points
from genlab.data.neighbours import crossings, nearest, squared_radii
from genlab.data.points import Points, together
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics import adm_distances
from genlab.eval.metrics.adm_distances import adm_precision_recall, half_sum
from genlab.eval.metrics.base import FeatureSet
from genlab.eval.metrics.manifold import DensityCoverage, PrecisionRecall
from genlab.eval.metrics.memorisation import NearestTrainingImages, nearest_images


def squared(x: Tensor, y: Tensor) -> Tensor:
    """All squared distances by differences in float64."""
    return torch.stack([(row.double() - y.double()).square().sum(1) for row in x])


def hard_sets(n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    """Copies within and between sets, an outlier, and a mean far from 0."""
    x, y = torch.randn(n, d), torch.randn(m, d)
    y[:5] = x[:5]
    x[10:18] = x[9]
    y[20] *= 1000
    return x + 30, y + 30


def integers(n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    """Ties wherever one looks."""
    return torch.randint(0, 4, (n, d)).float(), torch.randint(0, 4, (m, d)).float()


@pytest.fixture(params=[torch.float32, torch.float64])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The type of the fast products: that of a CPU and that of a GPU."""
    monkeypatch.setattr(points, "fast_type", lambda device: request.param)
    monkeypatch.setattr(points, "BLOCK", 32)  # several blocks, the last one smaller
    return request.param


@pytest.fixture(params=[True, False])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to multiply."""
    monkeypatch.setattr(points, "_convolution_is_faster", lambda: request.param)


@pytest.mark.usefixtures("products", "library")
@pytest.mark.parametrize("make", [hard_sets, integers])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [3, 70])
def test_neighbours_are_exact(make: object, dtype: torch.dtype, d: int) -> None:
    x, y = (s.to(dtype) for s in make(100, 70, d))  # type: ignore[operator]
    found = nearest(*together(x, y), 4)
    truth = squared(x, y)
    assert torch.equal(found.squared, truth.sort(1).values[:, :4])
    assert torch.equal(truth.gather(1, found.points), found.squared)
    own = squared(x, x).fill_diagonal_(torch.inf)
    found = nearest(Points(x), k=4)
    assert torch.equal(found.squared, own.sort(1).values[:, :4])
    assert torch.equal(own.gather(1, found.points), found.squared)


@pytest.mark.usefixtures("products", "library")
@pytest.mark.parametrize("make", [hard_sets, integers])
@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("d", [3, 70])
def test_crossings_are_exact(make: object, closed: bool, d: int) -> None:
    x, y = make(100, 70, d)  # type: ignore[operator]
    a, b = together(x, y)
    radii = squared_radii(a, 3), squared_radii(b, 3)
    around_x, around_y = crossings(a, b, *radii, closed=closed)
    D = squared(x, y)
    in_x = radii[0][:, None] >= D if closed else radii[0][:, None] > D
    in_y = radii[1] >= D if closed else radii[1] > D
    assert torch.equal(around_x.balls, in_x.sum(0))
    assert torch.equal(around_x.points, in_x.sum(1))
    assert torch.equal(around_y.balls, in_y.sum(1))
    assert torch.equal(around_y.points, in_y.sum(0))


@pytest.mark.parametrize("columns", [1, 3, 8])
@pytest.mark.parametrize("turned", [False, True])
def test_smallest_of_groups_are_the_smallest(turned: bool, columns: int) -> None:
    """The quick way for whole blocks, also with every smallest number in one group."""
    x = torch.randn(40, columns * neighbours.CHUNKS)
    x[0, 5 :: neighbours.CHUNKS] -= 100
    x = x.T.contiguous().T if turned else x
    values, where = neighbours._smallest(x, 7)
    assert torch.equal(values.sort(1).values, x.topk(7, largest=False).values)
    assert torch.equal(x.gather(1, where), values)


def test_more_copies_than_candidates() -> None:
    """Every distance of a row is 0 but one: the candidates cannot tell them apart."""
    x = torch.randn(1, 50).repeat(60, 1)
    x[0] += 1
    found = nearest(Points(x), k=3).squared
    assert torch.equal(found[1:], torch.zeros(59, 3, dtype=torch.float64))
    assert torch.equal(found[0], squared(x, x)[0, 1:4])


def test_distances_below_float32() -> None:
    """Neighbours that differ by less than a rounding of the products."""
    x = torch.randn(1, 40, dtype=torch.float64) * 100
    steps = torch.arange(1, 31, dtype=torch.float64)[torch.randperm(30)]
    others = x + 1e-6 * steps[:, None]
    found = nearest(*together(x, others), 30)
    assert torch.equal(steps[found.points[0]], torch.arange(1, 31).double())


def test_too_few_points_for_the_neighbours() -> None:
    x = torch.randn(3, 2)
    assert nearest(Points(x), k=2).points.shape == (3, 2)
    with pytest.raises(EvaluationError, match="3 neighbours of each image"):
        nearest(Points(x), k=3)


def sets(*rows: Tensor) -> list[FeatureSet]:
    return [FeatureSet(count=len(r), rows={"features": r}) for r in rows]


@pytest.mark.parametrize("variant", ["torch-fidelity", "adm", "adm-evaluate"])
def test_precision_and_recall_of_a_set_and_itself(variant: str) -> None:
    x = torch.randn(60, 5)
    scores = PrecisionRecall(variant=variant)(*sets(x, x))
    assert scores == {"precision": 1.0, "recall": 1.0, "f_score": 1.0}


def test_density_and_coverage_of_a_set_and_itself() -> None:
    """Every image lies in its own ball, and in those whose k nearest it is, without the surface."""
    x = torch.randn(60, 5)
    scores = DensityCoverage(k=5)(*sets(x, x))
    # A ball holds its centre and the k - 1 neighbours inside: k of them.
    assert scores == {"density": pytest.approx(1.0), "coverage": 1.0}


def test_sets_apart_score_0() -> None:
    x = torch.randn(60, 5)
    for metric in (PrecisionRecall(), DensityCoverage()):
        assert set(metric(*sets(x, x + 100)).values()) == {0.0}


def test_precision_is_of_the_samples() -> None:
    """All samples lie in one of two real clusters: precise, and half is missing."""
    real = torch.cat([torch.randn(50, 3), torch.randn(50, 3) + 100])
    fake = real[:50] + 1e-3 * torch.randn(50, 3)
    scores = PrecisionRecall()(*sets(fake, real))
    assert scores["precision"] > 0.95
    assert 0.4 < scores["recall"] <= 0.5
    swapped = PrecisionRecall()(*sets(real, fake))
    assert swapped["precision"] == scores["recall"]
    assert swapped["recall"] == scores["precision"]


def test_surface_decides_where_radii_are_0() -> None:
    """k + 1 equal images have a ball of radius 0, and their copies lie on its surface."""
    copies = torch.zeros(5, 2)
    closed, outside = (
        PrecisionRecall(variant=v)(*sets(copies, copies)) for v in ("torch-fidelity", "prdc")
    )
    assert closed["precision"] == 1.0
    assert outside["precision"] == 0.0


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.5, 8.0]), k=st.integers(1, 6))
def test_scores_ignore_scale_order_and_rotation(seed: int, scale: float, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(40, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    Q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator))[0]
    order = torch.randperm(40, generator=generator)
    for metric in (PrecisionRecall(k=k), DensityCoverage(k=k)):
        assert metric(*sets(x, y)) == metric(*sets(scale * x[order] @ Q + 3, scale * y @ Q + 3))


def test_float16_falls_back_where_it_overflows() -> None:
    """Values above 65504 are computed in float32 officially: there the variants agree."""
    x, y = torch.randn(200, 64), torch.randn(150, 64) + 0.3
    exact = PrecisionRecall()(*sets(x * 1000, y * 1000))
    assert PrecisionRecall(variant="adm")(*sets(x * 1000, y * 1000)) == exact
    # Near the limit the norms are finite and some distances are not.
    factor = (40000 / x.square().sum(1).max()).sqrt()
    u, v = (x * factor).half(), (-x * factor).half()
    norms = half_sum(u.square())
    assert norms.isfinite().all()
    assert adm_distances._overflows(u, v, norms, norms)
    assert not adm_distances._overflows(u / 8, v / 8, norms / 64, norms / 64)


def test_float16_batches_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(90, 20), torch.randn(70, 20)
    for other_way in (False, True):
        monkeypatch.undo()
        whole = adm_precision_recall(x, y, from_samples=other_way)
        monkeypatch.setattr(adm_distances, "BATCH", 32)
        monkeypatch.setattr(adm_distances, "ROWS", 12)
        assert adm_precision_recall(x, y, from_samples=other_way) == whole


def test_half_sums_have_tensorflows_order() -> None:
    """Where order shows: 2048 swallows each 1 that it meets, since float16 has steps of 2 there."""
    x = torch.zeros(3, 72).half()
    x[:, 0] = 2048
    x[0, 32] = 1  # the next vector of its chain: lost
    x[1, 1] = 1  # beside it in the same vector: added in float32, rounded away at the end
    x[2, [9, 17, 25]] = 1  # another chain and lane: in float32 2051, which rounds to 2052
    assert half_sum(x).tolist() == [2048.0, 2048.0, 2052.0]
    # More than 1600 numbers are summed in halves: ones would stop at 2048 in a single chain.
    assert half_sum(torch.ones(1, 4096).half()).tolist() == [4096.0]


def test_memorisation_tells_copies_from_new_images() -> None:
    generator = torch.Generator().manual_seed(0)
    train, fresh = torch.randn(2, 1000, 4, generator=generator)
    metric = NearestTrainingImages(percentile=10)
    new = metric(*sets(fresh, train))
    # A fresh draw keeps its distance: 1000 of them scatter by a few per cent.
    assert new["nearest_ratio"] == pytest.approx(1, abs=0.1)
    assert new["nearest_share"] == pytest.approx(0.1, abs=0.03)
    copied = metric(*sets(train[:500] + 1e-4, train))
    assert copied["nearest_ratio"] < 1e-3
    assert copied["nearest_share"] == 1.0
    half = metric(*sets(torch.cat([train[:500], fresh[:500]]), train))
    assert half["nearest_share"] == pytest.approx(0.55, abs=0.03)


def test_nearest_images_are_found() -> None:
    train = torch.randn(50, 8)
    numbers, distances = nearest_images(train[[7, 3]] + torch.tensor(0.001), train, k=2)
    assert numbers[:, 0].tolist() == [7, 3]
    assert distances[:, 0].tolist() == pytest.approx([0.001 * 8**0.5] * 2, rel=1e-3)
    assert (distances[:, 1] > distances[:, 0]).all()


def test_reference_of_copies_has_no_scale() -> None:
    with pytest.raises(EvaluationError, match="have a copy in it"):
        NearestTrainingImages()(*sets(torch.randn(4, 2), torch.ones(6, 2)))


def test_bad_sets_are_refused() -> None:
    good, spoilt = torch.randn(20, 3), torch.randn(20, 3)
    spoilt[[4, 7], 1] = float("nan")
    for metric in (PrecisionRecall(), DensityCoverage(), NearestTrainingImages()):
        with pytest.raises(
            EvaluationError, match="samples are not finite in 2 of 20 rows, first in row 4"
        ):
            metric(*sets(spoilt, good))
        with pytest.raises(EvaluationError, match="reference are not finite"):
            metric(*sets(good, spoilt))
        with pytest.raises(EvaluationError, match="3 features and the reference 2"):
            metric(*sets(good, good[:, :2]))
        with pytest.raises(EvaluationError, match="reference, got 1"):
            metric(*sets(good, good[:1]))
        with pytest.raises(EvaluationError, match="no rows of 'features', only none"):
            metric(sets(good)[0], FeatureSet(count=9))


def test_bad_options_are_refused() -> None:
    for make in (lambda: PrecisionRecall(k=0), lambda: DensityCoverage(k=0)):
        with pytest.raises(ConfigError, match="k must be at least 1"):
            make()
    with pytest.raises(ConfigError, match="variant must be one of torch-fidelity, adm"):
        PrecisionRecall(variant="keras")
    with pytest.raises(ConfigError, match="percentile"):
        NearestTrainingImages(percentile=100)


@pytest.mark.gpu
def test_gpu_counts_alike() -> None:
    x, y = hard_sets(300, 200, 40)
    assert PrecisionRecall()(*sets(x.cuda(), y)) == PrecisionRecall()(*sets(x, y))
