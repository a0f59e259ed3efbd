"""Schedules made for a model: costs of straight steps, and the shortest path over them."""

import itertools
from typing import Any

import pytest
import torch
from ideal_cases import SEEDS, SHAPE, Discrete, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.gits import METRICS, shortest_path, step_costs

TEACHER = {"solver": "euler", "schedule": {"num_steps": 12}}


def costs_of(metric: str, model: Any = None, num_steps: int = 12) -> tuple[Tensor, Tensor]:
    teacher = {"solver": "euler", "schedule": {"num_steps": num_steps}}
    return step_costs(NoiseStream(SEEDS).randn(SHAPE), run(teacher, model), metric)


def cost_of(path: tuple[int, ...], costs: Tensor, coeff: float) -> float:
    steps = [float(costs[a, b]) for a, b in itertools.pairwise(path)]
    return sum(coeff**k * cost for k, cost in enumerate(steps))


@pytest.mark.parametrize("coeff", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("num_steps", [2, 3, 5, 8])
def test_no_path_is_cheaper(num_steps: int, coeff: float) -> None:
    numbers = torch.Generator().manual_seed(num_steps)
    costs = torch.randn(8, 8, generator=numbers, dtype=torch.float64).triu(1)
    path = shortest_path(costs, num_steps, coeff)
    all_paths = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), num_steps - 2)]
    assert path == min(all_paths, key=lambda each: cost_of(each, costs, coeff))


@pytest.mark.parametrize("metric", METRICS)
def test_the_teacher_s_own_steps_cost_nothing(metric: str) -> None:
    levels, costs = costs_of(metric)
    assert levels.shape == (12,)
    torch.testing.assert_close(costs.diagonal(1), torch.zeros(11).double(), rtol=0, atol=1e-12)
    assert (costs.tril() == 0).all()
    if metric != "dev":  # which may be below 0
        assert (costs.triu(2)[:-2, 2:].diagonal() > 0).all()


def test_l2_is_the_distance_of_a_straight_step() -> None:
    levels, costs = costs_of("l2")
    model, latents = mixture(), NoiseStream(SEEDS).randn(SHAPE).double()
    start, steps = latents * levels[0], run(TEACHER)
    slope = (start - model(start, levels[0], Condition())) / levels[0]
    ends = start + (levels[5] - levels[0]) * slope
    expected = (ends - steps[4].x).flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(costs[0, 5], expected)


def test_levels_that_a_model_does_not_tell_apart_count_once() -> None:
    levels, costs = costs_of("l2", Discrete(mixture()), 60)
    assert (levels.diff() < 0).all()
    assert len(levels) == len(costs) < 60


def test_made_levels_follow_the_teacher_better_than_even_ones() -> None:
    levels, costs = costs_of("l2")
    chosen = shortest_path(costs, 5, 1.0)
    even = (0, 3, 6, 8, 11)
    assert cost_of(chosen, costs, 1.0) < 0.95 * cost_of(even, costs, 1.0)
    ends = {}
    for name, path in (("chosen", chosen), ("even", even)):
        schedule = {"name": "levels", "sigmas": levels[list(path)].tolist()}
        ends[name] = run({"solver": "euler", "schedule": schedule})[-1].x
    teacher = run(TEACHER)[-1].x
    assert (ends["chosen"] - teacher).norm() < (ends["even"] - teacher).norm()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: costs_of("l3"), "no metric 'l3'"),
        (lambda: shortest_path(torch.zeros(3, 3).double(), 4), "cannot be chosen among 3"),
        (lambda: shortest_path(torch.zeros(3, 3).double(), 2, 0.0), "coeff must be > 0"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_single_level_is_the_first() -> None:
    assert shortest_path(torch.zeros(3, 3).double(), 1) == (0,)
