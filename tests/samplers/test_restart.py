"""Restarts: which levels a run visits, what it costs, what it adds."""

import math
from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Discrete, Listener, mixture, run

from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.base import SCHEDULES, SOLVERS, Grid


def restart(*intervals: list[float], **options: Any) -> dict[str, Any]:
    solver = {"name": "restart", "intervals": [list(each) for each in intervals], **options}
    return {"solver": solver, "schedule": {"num_steps": 10}}


def test_an_interval_goes_up_by_noise_and_down_again() -> None:
    steps = run(restart([0.1, 1.0, 4, 2]))
    low = steps[7].level  # the schedule's level nearest to 0.1
    assert low == pytest.approx(0.117, rel=0.01)
    up = [step for step in steps if step.sigma_next > step.level]
    assert [(step.index, step.level, step.sigma_next) for step in up] == [
        (7, low, 1.0),
        (11, low, 1.0),
    ]
    way = [1.0, *(step.sigma_next for step in steps[8:11])]
    assert [way[0], way[-1]] == [1.0, low]
    roots = torch.tensor(way).double() ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(3))


def test_the_noise_that_is_added_is_the_missing_one() -> None:
    """``S_noise`` multiplies it, as in the official code, whose 0 adds none."""
    for S_noise in (0.0, 1.0, 1.5):
        steps = run(restart([0.1, 1.0, 4, 1], S_noise=S_noise))
        added = steps[7].x - steps[6].x
        noise = NoiseStream((0, 1, 2, 3))
        noise.randn(SHAPE)
        std = S_noise * math.sqrt(1.0 - steps[7].level ** 2)
        torch.testing.assert_close(added, std * noise.randn(SHAPE, torch.float64))


def test_intervals_at_one_level_follow_one_another() -> None:
    steps = run(restart([0.1, 1.0, 3, 1], [0.12, 2.0, 3, 1]))
    assert [step.sigma_next for step in steps if step.sigma_next > step.level] == [1.0, 2.0]


@pytest.mark.parametrize("num_steps", [4, 11])
def test_nfe_counts_the_ways_down(num_steps: int) -> None:
    config = restart([0.06, 0.3, 3, 2], [1.0, 20.0, 5, 3])
    config["schedule"] = {"num_steps": num_steps}
    model = Listener(mixture())
    steps = run(config, model)
    solver = SOLVERS.build_named(config["solver"])
    assert len(model.sigmas) == solver.nfe(num_steps) == 2 * num_steps - 1 + 8 + 24
    assert len(steps) == num_steps + 2 * 3 + 3 * 5


def test_churn_and_gamma_are_for_the_steps_outside_and_inside() -> None:
    churn = {"S_churn": 1.0, "gamma": 0.05, "S_min": 0.2}
    steps = run(restart([0.1, 1.0, 4, 1], **churn))
    inside = range(8, 11)
    for step in steps:
        factor = 1.0
        if step.level >= 0.2 and step.sigma_next < step.level:
            factor = 1.05 if step.index in inside else 1.1  # S_churn over the 10 steps
        assert step.sigma == pytest.approx(factor * step.level)
    assert [step.index for step in steps if step.sigma > step.level] == [*range(7), 8, 9, 10]


def test_discrete_levels_are_kept_to() -> None:
    model = Discrete(mixture())
    run(restart([0.1, 1.0, 4, 2], gamma=0.1), model)
    asked = torch.tensor(model.sigmas, dtype=torch.float64)
    torch.testing.assert_close(asked, model.round_sigma(asked), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intervals": []}, "take heun"),
        ({"intervals": [[0.1, 1.0, 4]]}, r"\[low, high, points, times\]"),
        ({"intervals": [[1.0, 0.1, 4, 1]]}, "0 < low < high"),
        ({"intervals": [[0.1, 1.0, 4.5, 1]]}, "whole numbers"),
        ({"intervals": [[0.1, 1.0, 1, 1]]}, "points >= 2"),
        ({"intervals": [[0.1, 1.0, 4, 0]]}, "times >= 1"),
        ({"intervals": [[0.1, 1.0, math.inf, 1]]}, "whole numbers"),
        ({"rho": 0.0}, "rho > 0"),
        ({"gamma": -0.1}, "gamma >= 0"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SOLVERS.build("restart", **options)


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ([70.0, 90.0, 3, 1], "where the run begins, too"),
        ([0.05, 0.06, 3, 1], "must end above it"),
        ([0.1, 50.0, 3, 1], "at most at 40"),
    ],
    ids=str,
)
def test_intervals_that_do_not_fit_a_run_are_refused(interval: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(restart(interval), Discrete(mixture()))


def test_levels_that_rise_already_are_refused() -> None:
    levels = {"name": "levels", "sigmas": [10.0, 1.0, 3.0, 0.1]}
    with pytest.raises(ConfigError, match="rise already"):
        run({"solver": "restart", "schedule": levels})
    assert Grid.of(SCHEDULES.build_named(levels), mixture().noise_levels).restarts


def test_the_model_is_told_of_restarts() -> None:
    for config, expected in ((restart([0.1, 1.0, 3, 1]), True), ({"solver": "heun"}, False)):
        model = Listener(mixture())
        run(config, model)
        assert {step.restarts for step in model.steps} == {expected}


def test_windows_of_steps_are_refused_and_others_are_not() -> None:
    config = restart([0.1, 1.0, 3, 1])
    guided = {"name": "cfg", "scale": 2.0, "when": {"steps": [0.0, 0.5]}}
    with pytest.raises(ConfigError, match=r"when\.sigma or when\.time"):
        run({**config, "guidance": [guided]})
    run({**config, "guidance": [{**guided, "when": {"sigma": [0.2, 5.0]}}]})
