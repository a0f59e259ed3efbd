"""Classifier score, kernel distance, Vendi score and similarity: exact truths and bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics import kernel
from genlab.eval.metrics.base import METRICS, FeatureMetric, FeatureSet
from genlab.eval.metrics.classifier_score import ClassifierScore, classifier_score
from genlab.eval.metrics.diversity import (
    MeanPairwiseSimilarity,
    Vendi,
    internal_diversity,
    mean_pairwise_similarity,
    vendi_score,
    vendi_score_of_kernel,
)
from genlab.eval.metrics.kernel import KernelDistance


def of(rows: Tensor, output: str = "features") -> FeatureSet:
    return FeatureSet(count=len(rows), rows={output: rows})


def kd(metric: KernelDistance, x: Tensor, y: Tensor) -> float:
    return metric(of(x), of(y))["kd"]


# Classifier score


def test_sure_and_balanced_classifier_scores_the_number_of_classes() -> None:
    """And probabilities that underflow to an exact 0 give no NaN."""
    logits = 1000 * torch.eye(6).repeat(5, 1)
    assert classifier_score(logits) == pytest.approx(6, rel=1e-12)


def test_zero_probability_of_a_class_that_nobody_shows() -> None:
    logits = torch.tensor([[0.0, 0.0, -2000.0], [0.0, 1.0, -2000.0]])
    assert classifier_score(logits) == pytest.approx(classifier_score(logits[:, :2]), rel=1e-12)


def test_equal_predictions_score_1() -> None:
    assert classifier_score(torch.randn(1, 7).repeat(9, 1)) == pytest.approx(1, rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), classes=st.integers(1, 8), scale=st.floats(0, 300))
def test_score_lies_between_1_and_the_number_of_classes(
    seed: int, classes: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(12, classes, generator=generator)
    assert 1 - 1e-12 <= classifier_score(logits) <= classes * (1 + 1e-12)


def test_chunks_are_cut_as_officially() -> None:
    logits = torch.randn(23, 4, generator=torch.Generator().manual_seed(1))
    ours = ClassifierScore(splits=3, shuffle=False)(of(logits, "logits"), None)
    scores = [classifier_score(logits[a:b]) for a, b in ((0, 7), (7, 15), (15, 23))]
    assert ours["cs"] == pytest.approx(sum(scores) / 3)
    ours = ClassifierScore(variant="adm", split_size=10)(of(logits, "logits"), None)
    scores = [classifier_score(logits[a:b]) for a, b in ((0, 10), (10, 20), (20, 23))]
    assert ours == {"cs": pytest.approx(sum(scores) / 3)}


# Kernel distance


def test_biased_distance_of_a_set_to_itself_is_0() -> None:
    x = torch.randn(40, 5)
    for name in kernel.KERNELS:
        metric = KernelDistance(variant="exact", estimator="biased", kernel=name)
        assert abs(kd(metric, x, x)) < 1e-12


def test_unbiased_distance_of_a_set_to_itself() -> None:
    """It counts each image against itself between the sets, and not within."""
    x = torch.randn(40, 5, dtype=torch.float64)
    K = (x @ x.T / 5 + 1) ** 3
    expected = -2 * float((K.diagonal().mean() - K.mean()) / 39)
    assert kd(KernelDistance(variant="exact"), x, x) == pytest.approx(expected, rel=1e-10)


def test_linear_kernel_is_the_distance_of_means() -> None:
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64) + 1
    metric = KernelDistance(variant="exact", estimator="biased", degree=1, gamma=1.0, coef0=0.0)
    expected = float((x.mean(0) - y.mean(0)).square().sum())
    assert kd(metric, x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("estimator", kernel.ESTIMATORS)
@pytest.mark.parametrize("name", kernel.KERNELS)
def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, estimator: str, name: str) -> None:
    x, y = torch.randn(2, 37, 5, dtype=torch.float64)
    metric = KernelDistance(variant="exact", estimator=estimator, kernel=name, sigma=2.0)
    whole = kd(metric, x, y)
    monkeypatch.setattr(kernel, "BLOCK", 10)
    assert kd(metric, x, y) == pytest.approx(whole, rel=1e-10)


def test_subset_of_everything_is_everything() -> None:
    x, y = torch.randn(2, 30, 4)
    found = KernelDistance(subsets=3, subset_size=30)(of(x), of(y))
    assert found["kd"] == pytest.approx(kd(KernelDistance(variant="exact"), x, y), rel=1e-10)
    assert found["kd_std"] == pytest.approx(0, abs=1e-12)


def test_small_sets_are_refused_or_shrink_the_subset() -> None:
    x, y = torch.randn(20, 4), torch.randn(30, 4)
    with pytest.raises(EvaluationError, match="subsets of 1000 cannot be drawn from 20 images"):
        KernelDistance()(of(x), of(y))
    clean = KernelDistance(variant="clean-fid", subsets=2)
    assert [len(i) for i in next(clean.draw(20, 30))] == [20, 20]
    assert set(clean(of(x), of(y))) == {"kd"}
    with pytest.raises(EvaluationError, match="there are 20 and 30"):
        kd(KernelDistance(variant="exact", estimator="u-statistic"), x, y)


# Vendi score and similarity


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.0, 7.0, math.inf])
@pytest.mark.parametrize("copies", [1, 4])
def test_distinct_orthogonal_points_are_counted(order: float, copies: int) -> None:
    """k points, however often each is repeated; with four copies there are more than features."""
    rows = torch.diag(torch.rand(9) + 0.5)[:6].repeat(copies, 1)
    assert vendi_score(rows, order) == pytest.approx(6, rel=1e-10)
    K = torch.eye(6).repeat(copies, copies)
    assert vendi_score_of_kernel(K, order) == pytest.approx(6, rel=1e-10)
    assert Vendi(order=order)(of(rows), None) == {"vendi": pytest.approx(6, rel=1e-10)}


def test_weights_count_repeats() -> None:
    rows = torch.randn(5, 3)
    repeats = torch.tensor([1, 2, 3, 1, 3])
    weighted = vendi_score(rows, weights=repeats.double() / 10)
    assert weighted == pytest.approx(vendi_score(rows.repeat_interleave(repeats, 0)), rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(1, 12), d=st.integers(1, 12))
def test_vendi_lies_between_1_and_n_and_falls_with_the_order(seed: int, n: int, d: int) -> None:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    scores = [vendi_score(rows, order) for order in (0.5, 1.0, 2.0, math.inf)]
    assert scores[-1] >= 1 - 1e-9
    assert scores[0] <= min(n, d) * (1 + 1e-9)
    assert all(a >= b * (1 - 1e-9) for a, b in itertools.pairwise(scores))


def test_similarity_and_diversity_of_all_pairs() -> None:
    rows = torch.randn(20, 6, dtype=torch.float64)
    K = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    found = MeanPairwiseSimilarity()(of(rows), None)
    off = K[~torch.eye(20, dtype=torch.bool)]
    assert found["similarity"] == pytest.approx(float(off.mean()), rel=1e-10)
    assert found["similarity_all"] == pytest.approx(float(K.mean()), rel=1e-10)
    assert internal_diversity(rows) == pytest.approx(1 - found["similarity_all"], rel=1e-10)
    assert internal_diversity(rows, 3) == pytest.approx(1 - float((K**3).mean()), rel=1e-10)
    assert mean_pairwise_similarity(rows[:1].repeat(5, 1)) == pytest.approx(1)


def test_rows_without_direction_and_wrong_weights_are_refused() -> None:
    rows = torch.randn(6, 3)
    rows[2] = 0
    with pytest.raises(
        EvaluationError, match="1 of 6 samples have features of zeros, first in row 2"
    ):
        Vendi()(of(rows), None)
    for weights in (torch.ones(6), torch.tensor([1.5, -0.5, 0, 0, 0, 0]), torch.ones(3) / 3):
        with pytest.raises(EvaluationError, match="6 probabilities that sum to 1"):
            vendi_score(rows + 1, weights=weights)


# All of them


def test_names_lead_to_the_metrics() -> None:
    ours = ["fd", "sfd", "fd-infinity", "cs", "kd", "pr", "dc", "vendi", "similarity", "nearest"]
    for name in ours:
        metric = METRICS.build(name)
        assert isinstance(metric, FeatureMetric)
        assert metric.settings() == vars(metric)


@pytest.mark.parametrize(
    "metric", [Vendi(), MeanPairwiseSimilarity(), KernelDistance(), ClassifierScore()]
)
def test_bad_rows_are_refused(metric: FeatureMetric) -> None:
    output = metric.needs[0].output
    rows = torch.randn(30, 4)
    rows[7, 2] = float("inf")
    with pytest.raises(EvaluationError, match="not finite in 1 of 30 rows, first in row 7"):
        metric(of(rows, output), of(rows, output))
    with pytest.raises(EvaluationError, match="at least 2 samples, got 1"):
        metric(of(rows[:1], output), of(rows, output))


def test_bad_options_are_refused() -> None:
    for make, message in (
        (lambda: ClassifierScore(variant="keras"), "variant must be torch-fidelity or adm"),
        (lambda: ClassifierScore(splits=0), "splits must be at least 1"),
        (lambda: KernelDistance(variant="all"), "variant must be one of torch-fidelity"),
        (lambda: KernelDistance(kernel="linear"), "kernel must be one of polynomial, rbf"),
        (lambda: KernelDistance(estimator="median"), "estimator must be one of unbiased"),
        (lambda: KernelDistance(subset_size=1), "subset_size must be at least 2"),
        (lambda: KernelDistance(sigma=0.0), "sigma must be positive"),
        (lambda: Vendi(order=-1.0), "order must be at least 0"),
        (lambda: internal_diversity(torch.ones(2, 2), 0), "order must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(EvaluationError, match="4 samples cannot be cut into 10 chunks"):
        ClassifierScore()(of(torch.randn(4, 3), "logits"), None)
