"""Moments and the Fréchet distance: exact truths."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics import frechet
from genlab.eval.metrics.base import FeatureSet
from genlab.eval.metrics.checks import EvaluationWarning
from genlab.eval.metrics.frechet import (
    FrechetDistance,
    FrechetDistanceInfinity,
    SpatialFrechetDistance,
    frechet_distance,
)
from genlab.eval.moments import Moments


def rows(n: int, d: int, seed: int = 0, decay: float = 0.0) -> Tensor:
    """Correlated Gaussian rows whose standard deviations fall as a power."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, d, dtype=torch.float64, generator=generator)
    noise *= torch.arange(1, d + 1).double() ** -decay
    return noise @ torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))[0]


def exact(x: Tensor, y: Tensor) -> float:
    """By the singular values of the centred rows, which never squares them."""
    X, Y = (z - z.mean(0) for z in (x, y))
    nuclear = torch.linalg.svdvals(X @ Y.T).sum() / math.sqrt((len(x) - 1) * (len(y) - 1))
    mean = (x.mean(0) - y.mean(0)).square().sum()
    return float(mean + x.T.cov().trace() + y.T.cov().trace() - 2 * nuclear)


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(lambda c: sum(c) > 1),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_batches_and_merging_equal_one_pass(counts: list[int], offset: float, seed: int) -> None:
    data = rows(sum(counts), 5, seed) + offset
    batched, merged = Moments(5), Moments(5)
    for batch in data.split(counts):
        batched.update(batch)
        merged.merge(Moments.of(batch))
    for moments in (batched, merged):
        assert moments.count == len(data)
        # Rounding of the rows themselves, whose size is that of the offset.
        scale = 2.0**-52 * max(1.0, offset)
        assert torch.allclose(moments.mean, data.mean(0), rtol=1e-13, atol=1e-13)
        assert torch.allclose(moments.cov, data.T.cov(), rtol=1e-12, atol=50 * scale)


def test_moments_of_float32_rows_are_float64() -> None:
    data = rows(50, 4).float()
    moments = Moments.of(data)
    assert torch.allclose(moments.cov, data.double().T.cov(), rtol=1e-13)


def test_moments_through_state_and_statistics() -> None:
    moments = Moments.of(rows(50, 4))
    again = Moments.from_state(moments.state_dict())
    other = Moments.from_statistics(50, moments.mean, moments.cov)
    for copy in (again, other):
        copy.update(rows(3, 4, seed=1))
        assert copy.count == 53
    assert torch.allclose(again.cov, other.cov, rtol=1e-13)
    assert moments.count == 50, "a copy shares the state of its original"


@pytest.mark.parametrize("d", [1, 7, 300])
def test_gaussians_in_closed_form(d: int) -> None:
    """Covariances with the same eigenvectors: squared differences of means and deviations."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))[0]
    s1, s2 = torch.rand(2, d, dtype=torch.float64, generator=generator) + 0.1
    m1, m2 = torch.randn(2, d, dtype=torch.float64, generator=generator)
    a = Moments.from_statistics(2 * d, m1, basis * s1**2 @ basis.T)
    b = Moments.from_statistics(2 * d, m2, basis * s2**2 @ basis.T)
    truth = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-12)


@pytest.mark.filterwarnings("ignore::genlab.eval.metrics.checks.EvaluationWarning")
@pytest.mark.parametrize(
    ("n", "m", "decay"),
    [
        (500, 400, 0),
        (500, 400, 2),
        (500, 400, 6),
        (30, 400, 0),
        (400, 30, 1),
        (30, 20, 0),
        (2, 3, 0),
    ],
)
def test_distance_of_rows(n: int, m: int, decay: float) -> None:
    """Full rank, spectra down to 1e-12 of their top and beyond, and any kind of rank deficiency."""
    x, y = rows(n, 80, 1, decay), rows(m, 80, 2, decay)
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    assert ours == pytest.approx(exact(x, y), rel=1e-9)


def test_symmetric_route_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick route for full rank, the other one where the root of noise would count."""
    taken = []
    factor = frechet._factor

    def noting(S: Tensor, max_rank: int) -> Tensor:
        taken.append(max_rank)
        return factor(S, max_rank)

    monkeypatch.setattr(frechet, "_factor", noting)
    full, flat = rows(200, 40), rows(200, 40) * (torch.arange(40) > 0)
    frechet_distance(Moments.of(full), Moments.of(full + 1))
    assert not taken
    ours = frechet_distance(Moments.of(full), Moments.of(flat))
    assert taken
    assert ours == pytest.approx(exact(full, flat), rel=1e-9)


@pytest.mark.filterwarnings("ignore::genlab.eval.metrics.checks.EvaluationWarning")
@pytest.mark.parametrize("n", [20, 300])
def test_distance_of_a_set_to_itself_is_0(n: int) -> None:
    moments = Moments.of(rows(n, 60) * 10)
    assert abs(frechet_distance(moments, moments)) < 1e-9 * float(moments.cov.trace())


@pytest.mark.filterwarnings("ignore::genlab.eval.metrics.checks.EvaluationWarning")
def test_constant_features_leave_the_means() -> None:
    a, b = torch.ones(5, 3), torch.zeros(5, 3)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(3.0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
def test_distance_scales_and_is_symmetric(seed: int, scale: float) -> None:
    x, y = rows(40, 6, seed), rows(50, 6, seed + 1) + 0.3
    d = frechet_distance(Moments.of(x), Moments.of(y))
    assert frechet_distance(Moments.of(y), Moments.of(x)) == pytest.approx(d, rel=1e-10)
    scaled = frechet_distance(Moments.of(scale * x), Moments.of(scale * y))
    assert scaled == pytest.approx(scale**2 * d, rel=1e-10)
    shifted = frechet_distance(Moments.of(x + 5), Moments.of(y + 5))
    assert shifted == pytest.approx(d, rel=1e-9)


def test_blocked_product_is_the_product() -> None:
    """More columns than a block, and not a multiple of it."""
    d = 2 * frechet.COLUMNS + 7
    S = rows(d + 1, d).T.cov()
    L = torch.randn(d, d, dtype=torch.float64).tril()
    ours = frechet._congruence(L, S)
    assert torch.allclose(ours.tril(), (L.T @ S @ L).tril(), rtol=1e-10, atol=1e-10)


def both(x: Tensor, y: Tensor, output: str = "features") -> list[FeatureSet]:
    return [
        FeatureSet(count=len(z), moments={output: Moments.of(z)}, rows={output: z}) for z in (x, y)
    ]


def test_metrics_read_their_own_output() -> None:
    x, y = rows(100, 8), rows(100, 8, 1)
    assert FrechetDistance()(*both(x, y)) == {"fd": pytest.approx(exact(x, y))}
    assert SpatialFrechetDistance()(*both(x, y, "spatial")) == {"sfd": pytest.approx(exact(x, y))}
    with pytest.raises(EvaluationError, match="no mean and covariance of 'features', only spatial"):
        FrechetDistance()(*both(x, y, "spatial"))
    with pytest.raises(EvaluationError, match="no reference"):
        FrechetDistance()(both(x, y)[0], None)


def test_infinity_removes_the_bias_of_the_samples() -> None:
    """Samples and reference of one distribution: the distance of N samples is about c / N."""
    reference = Moments.from_statistics(10**6, torch.zeros(20).double(), torch.eye(20).double())
    real = FeatureSet(count=10**6, moments={"features": reference})
    x = torch.randn(3000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    samples = FeatureSet(count=3000, rows={"features": x})
    metric = FrechetDistanceInfinity()
    sizes, distances = metric.distances(x, reference)
    assert sizes.tolist()[0] == 300
    assert sizes.tolist()[-1] == 3000
    assert len(sizes) == 15
    ours = metric(samples, real)["fd-infinity"]
    assert metric(samples, real)["fd-infinity"] == ours
    # The expected distance at N is about (d + d (d + 1) / 4) / N: 0.25 at 500, 0.04 at 3000.
    assert abs(ours) < 0.25 * float(distances[-1])


def test_infinity_warns_where_the_fit_is_not_a_line() -> None:
    x = rows(200, 30)
    with pytest.warns(EvaluationWarning, match="20 images for 30 features"):
        FrechetDistanceInfinity()(*both(x, rows(200, 30, 1)))
    with pytest.raises(EvaluationError, match="at least 150 samples, got 50"):
        FrechetDistanceInfinity()(*both(x[:50], x))
    with pytest.raises(ConfigError, match="num_sizes"):
        FrechetDistanceInfinity(num_sizes=1)


def test_intercept_of_a_line() -> None:
    x = torch.tensor([0.5, 1.0, 4.0]).double()
    assert frechet.intercept(x, 3 - 2 * x) == pytest.approx(3.0)


def test_too_few_images_warn() -> None:
    x = Moments.of(rows(8, 8))
    with pytest.warns(EvaluationWarning, match="8 images for 8 features") as caught:
        frechet_distance(x, Moments.of(rows(9, 8)))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(Moments.of(rows(9, 8)), Moments.of(rows(9, 8)))


def test_bad_moments_are_refused() -> None:
    good = Moments.of(rows(20, 4))
    with pytest.raises(EvaluationError, match="5 features and the reference 4"):
        frechet_distance(Moments.of(rows(20, 5)), good)
    spoilt = rows(20, 4)
    spoilt[3, 1] = float("nan")
    with pytest.raises(EvaluationError, match="not finite"):
        frechet_distance(Moments.of(spoilt), good)
    with (
        pytest.warns(EvaluationWarning),
        pytest.raises(EvaluationError, match="at least two images, got 1"),
    ):
        frechet_distance(Moments.of(rows(1, 4)), good)


@pytest.mark.gpu
def test_gpu_agrees() -> None:
    x, y = rows(300, 40), rows(200, 40, 1)
    ours = frechet_distance(Moments.of(x.cuda()), Moments.of(y))
    assert ours == pytest.approx(exact(x, y), rel=1e-10)
