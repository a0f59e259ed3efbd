"""Truncated latents against SciPy's distribution; statistics by truncation, both ways."""

import math
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from genlab import config
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.gan.sampler import (
    GanConfig,
    GanSampler,
    StatisticsConfig,
    hf_mixture,
    mixture,
    truncated_normal,
)

K = 51
GRID = [index / 50 for index in range(1, K)]
MISSED = {0.14: 8, 0.28: 15, 0.56: 29, 0.58: 28, 0.94: 46}
"""Grid values of which the official code takes a neighbour's row."""


@pytest.mark.parametrize("bound", [0.1, 1.0, 2.0, 6.0])
def test_truncated_normal_has_scipys_distribution(bound: float) -> None:
    """Kolmogorov and Smirnov: 20,000 draws, and each stream's first number beside the others'."""
    across = truncated_normal(NoiseStream(range(1000)), (20,), bound)
    assert across.abs().max() <= bound
    for numbers in (across.flatten(), across[:, 0]):
        assert stats.kstest(numbers.numpy(), stats.truncnorm(-bound, bound).cdf).pvalue > 0.01


def test_extreme_uniform_numbers_stay_within_the_bound() -> None:
    class Extreme(NoiseStream):
        def rand(self, shape: Any, dtype: Any = None) -> Any:
            return torch.tensor([[0.0, 0.5, 1 - 2**-53]], dtype=dtype)

    numbers = truncated_normal(Extreme([0]), (3,), 2.0)
    torch.testing.assert_close(numbers, torch.tensor([[-2.0, 0.0, 2.0]]), rtol=0, atol=1e-6)


def test_latents() -> None:
    def latents(**options: Any) -> torch.Tensor:
        return GanSampler(**options).latents(NoiseStream(range(2000)), 10)

    assert latents().abs().max() > 3
    assert 0.7 < latents(truncation=0.4).abs().max() <= 0.8, "scaled: cut off at twice as much"
    assert 0.35 < latents(truncation=0.4, resample=True).abs().max() <= 0.4
    assert torch.equal(2 * latents(truncation=0.25), latents(truncation=0.5))


@pytest.mark.parametrize("num_stats", [1, 2, 51])
@pytest.mark.parametrize("truncation", [1e-9, 0.02, 0.14, 0.3, 0.435, 0.58, 0.999, 1.0])
def test_statistics_are_interpolated_linearly(truncation: float, num_stats: int) -> None:
    """A table that is linear in the truncation is met at every truncation."""
    weights = mixture(truncation, num_stats)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    if num_stats > 1:
        table = torch.linspace(0, 1, num_stats, dtype=torch.float64)
        assert float(weights @ table) == pytest.approx(truncation, abs=1e-12)


@pytest.mark.parametrize("truncation", GRID)
def test_grid_values_take_their_own_row(truncation: float) -> None:
    weights = GanSampler(truncation=truncation).mixture(K)
    row = round(50 * truncation)
    assert weights.argmax() == row
    assert weights[row] == 1


@pytest.mark.parametrize("truncation", GRID)
def test_hf_compat_on_the_grid(truncation: float) -> None:
    weights = GanSampler(truncation=truncation, hf_compat=True).mixture(K)
    row = MISSED.get(round(truncation, 2), round(50 * truncation))
    torch.testing.assert_close(weights[row], torch.tensor(1.0))


def test_hf_compat_swaps_the_weights() -> None:
    ours, theirs = mixture(0.435, K), hf_mixture(0.435, K)
    assert ours[21:23].tolist() == pytest.approx([0.25, 0.75])
    assert theirs[21:23].tolist() == pytest.approx([0.75, 0.25])
    assert torch.equal(mixture(1.0, K), hf_mixture(1.0, K))


@pytest.mark.parametrize("num_stats", range(2, 120))
def test_hf_compat_stays_within_the_table(num_stats: int) -> None:
    weights = hf_mixture(1.0, num_stats)
    assert weights.sum() == 1
    assert weights[-2:].sum() == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"truncation": 0}, "truncation must lie above 0"),
        ({"truncation": math.nan}, "truncation must lie above 0"),
        ({"truncation": math.inf}, "truncation must lie above 0"),
        ({"truncation": "much"}, "truncation takes a number"),
        ({"resample": True}, "resample needs a threshold"),
        ({"statistics": {"standing": -1}}, "standing of at least 0"),
        ({"statistics": {"standing": 1, "batch_size": 0}}, "batch_size of at least 1"),
        ({"statistics": {"passes": 3}}, "no setting 'statistics.passes'"),
        ({"temperature": 1}, "no setting 'temperature'.*truncation"),
    ],
)
def test_wrong_settings(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.fill(GanConfig, [("the sampler", layer)])


def test_defaults() -> None:
    assert GanSampler() == GanSampler(
        truncation=None, resample=False, statistics=StatisticsConfig(standing=0), hf_compat=False
    )
