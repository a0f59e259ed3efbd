"""Averages of the weights against their definitions, and reconstruction against direct tracking."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genlab.errors import CheckpointError, ConfigError, TrainingError
from genlab.training.loop.ema import (
    HalfLifeAverage,
    PowerAverage,
    WeightAverage,
    gamma_of,
    sigma_rel_of,
)
from genlab.training.loop.snapshots import list_snapshots, prune_snapshots, save_snapshots
from genlab.training.loop.state import Progress
from genlab.training.posthoc import RULES, Profile, coefficients, distance, reconstruct
from genlab.training.run import Run

BATCH = 4


def follow(average: WeightAverage, path: torch.Tensor) -> None:
    """Let an average follow a sequence of weights, one row a step."""
    for step, weights in enumerate(path):
        average.update([weights], step * BATCH, BATCH)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.15, 0.25])
def test_width_and_exponent_are_inverse(sigma_rel: float) -> None:
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


def test_half_of_a_change_is_forgotten_in_a_half_life() -> None:
    average = HalfLifeAverage({"w": torch.zeros(1)}, halflife=100 * BATCH, rampup_ratio=None)
    follow(average, torch.ones(100, 1))
    assert average.state_dict()["w"].item() == pytest.approx(0.5, abs=1e-5)


def test_half_life_starts_short_and_ends_as_configured() -> None:
    average = HalfLifeAverage({"w": torch.zeros(1)}, halflife=1000, rampup_ratio=0.05)
    assert average.keep(0, BATCH) == 0  # nothing is kept of the fresh weights
    assert average.keep(10_000, BATCH) == pytest.approx(0.5 ** (BATCH / 500))
    assert average.keep(10**9, BATCH) == pytest.approx(0.5 ** (BATCH / 1000))


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10])
def test_power_average_weighs_by_its_profile(sigma_rel: float) -> None:
    steps = 300
    average = PowerAverage({"w": torch.ones(steps)}, sigma_rel)
    follow(average, torch.eye(steps))  # what comes out is the weight of each step
    weights = average.state_dict()["w"].double().numpy()
    power = np.arange(steps + 1) ** (gamma_of(sigma_rel) + 1) / steps ** (gamma_of(sigma_rel) + 1)
    assert np.abs(weights - np.diff(power)).max() < 1e-5 * weights.max()
    centre = (np.arange(steps) + 0.5) / steps
    mean = (weights * centre).sum()
    std = np.sqrt((weights * (centre - mean) ** 2).sum())
    assert std == pytest.approx(sigma_rel, rel=1e-3)  # up to the width of a step, (1/300)^2


def test_inner_product_of_profiles_is_their_integral() -> None:
    a, b = Profile(gamma_of(0.05), 3.0), Profile(gamma_of(0.12), 5.0)
    tau = (np.arange(200_000) + 0.5) / 200_000 * 3.0
    densities = [(p.gamma + 1) * tau**p.gamma / p.t ** (p.gamma + 1) for p in (a, b)]
    assert a.dot(b) == pytest.approx((densities[0] * densities[1]).mean() * 3.0, rel=1e-6)
    assert a.dot(b) == b.dot(a)


def test_a_stored_average_is_reconstructed_from_itself() -> None:
    stored = [Profile(gamma_of(s), t) for t in (100.0, 200.0, 300.0) for s in (0.05, 0.1)]
    weights = coefficients(stored, stored[-1])
    assert weights == pytest.approx([0, 0, 0, 0, 0, 1], abs=1e-8)
    assert distance(stored, weights, stored[-1]) < 1e-6


def test_more_snapshots_come_nearer() -> None:
    wanted = Profile(gamma_of(0.07), 1000)

    def error(count: int) -> float:
        times = np.linspace(1000 / count, 1000, count)
        stored = [Profile(gamma_of(s), t) for t in times for s in (0.05, 0.1)]
        weights = coefficients(stored, wanted)
        assert weights.sum() == pytest.approx(1)
        return distance(stored, weights, wanted)

    errors = [error(count) for count in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2


def test_both_rules_sum_to_one_and_ours_is_never_farther() -> None:
    """With few stored averages the official rule gives other coefficients, from a farther sum."""
    stored = [Profile(gamma_of(s), t) for t in (100.0, 300.0, 600.0, 1000.0) for s in (0.05, 0.1)]
    for sigma_rel in (0.03, 0.08, 0.2):
        wanted = Profile(gamma_of(sigma_rel), 1000.0)
        ours, official = (coefficients(stored, wanted, rule) for rule in RULES)
        assert official.sum() == pytest.approx(1, abs=1e-12)
        assert ours.sum() == pytest.approx(1, abs=1e-12)
        assert abs(ours - official).max() > 1e-4
        assert distance(stored, ours, wanted) <= distance(stored, official, wanted)
    with pytest.raises(ConfigError, match=r"no post-hoc rule 'edm'; .*edm2"):
        coefficients(stored, wanted, "edm")


@pytest.fixture
def walk(tmp_path: Path) -> tuple[Run, dict[float, torch.Tensor]]:
    """A run of 400 steps whose weights walk at random, and averages of them tracked directly."""
    path = torch.randn(400, 50).cumsum(0)
    run = Run(tmp_path)
    start = {"w": path[0]}
    tracked = [PowerAverage(start, sigma_rel) for sigma_rel in (0.05, 0.10)]
    direct = {sigma_rel: PowerAverage(start, sigma_rel) for sigma_rel in (0.06, 0.08, 0.12)}
    for step, weights in enumerate(path):
        for average in [*tracked, *direct.values()]:
            average.update([weights], step * BATCH, BATCH)
        if (step + 1) % 25 == 0:
            progress = Progress(step=step + 1, images=(step + 1) * BATCH)
            save_snapshots(run, tracked, progress, torch.float32)
    return run, {s: average.state_dict()["w"] for s, average in direct.items()}


@pytest.mark.parametrize("sigma_rel", [0.06, 0.08, 0.12])
def test_reconstruction_is_what_tracking_would_have_given(
    walk: tuple[Run, dict[float, torch.Tensor]], sigma_rel: float
) -> None:
    run, direct = walk
    weights, error = reconstruct(list_snapshots(run.snapshots), sigma_rel)
    # Far finer than what a wrong width would give.
    spread = (direct[0.06] - direct[0.12]).norm()
    assert (weights["w"] - direct[sigma_rel]).norm() < 0.02 * spread
    assert error < 0.02


def test_the_official_rule_is_taken_by_name(
    walk: tuple[Run, dict[float, torch.Tensor]],
) -> None:
    snapshots = list_snapshots(walk[0].snapshots)[:4]
    ours, _ = reconstruct(snapshots, 0.08)
    official, _ = reconstruct(snapshots, 0.08, rule="edm2")
    assert not torch.allclose(ours["w"], official["w"], rtol=1e-4)


def test_reconstruction_refuses_what_it_cannot_do(
    walk: tuple[Run, dict[float, torch.Tensor]],
) -> None:
    run, _ = walk
    snapshots = list_snapshots(run.snapshots)
    with pytest.raises(TrainingError, match=r"between 0 and 0\.28"):
        reconstruct(snapshots, 0.5)
    with pytest.raises(TrainingError, match="no power-function averages"):
        reconstruct([], 0.08)
    snapshots[0].path.write_bytes(snapshots[0].path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        reconstruct(snapshots, 0.08)


def test_snapshots_from_beyond_a_state_are_removed(
    walk: tuple[Run, dict[float, torch.Tensor]],
) -> None:
    run, _ = walk
    prune_snapshots(run.snapshots, 800)
    assert {s.images for s in list_snapshots(run.snapshots)} == set(range(100, 801, 100))
