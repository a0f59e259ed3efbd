"""Solvers against each other, and what they refuse."""

import math
from typing import Any

import pytest
import torch
from ideal_cases import CHURNING, Discrete, mixture, run

from genlab.errors import ConfigError
from genlab.samplers.base import SOLVERS, Grid

CHURN = {"S_churn": 5.0, "S_min": 0.1, "S_max": 20.0, "S_noise": 1.01}


@pytest.mark.parametrize("options", [{}, CHURN])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"name": "heun"}, {"name": "two-stage", "alpha": 1.0}),
        ({"name": "heun"}, {"name": "general"}),
        ({"name": "euler"}, {"name": "general", "solver": "euler"}),
        ({"name": "two-stage", "alpha": 0.6}, {"name": "general", "alpha": 0.6}),
    ],
    ids=str,
)
def test_same_method_same_images(
    one: dict[str, Any], other: dict[str, Any], options: dict[str, Any]
) -> None:
    a, b = (run({"solver": {**solver, **options}})[-1].x for solver in (one, other))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_scaling_changes_only_the_error() -> None:
    """Euler in the vp frame is exact in another variable, yet both tend to the same image."""
    plain, scaled = (
        run({"solver": {"name": "general", "scaling": s}, "schedule": {"num_steps": 80}})[-1].x
        for s in ("none", "vp")
    )
    assert 1e-8 < (plain - scaled).abs().max() < 0.02


def test_vp_time_follows_the_schedules_range() -> None:
    """Betas come from the range asked for, not from the levels that a discrete schedule picks."""
    solver: Any = SOLVERS["general"](schedule="vp")  # type: ignore[call-arg]
    sigmas = torch.tensor([60.0, 5.0, 0.1, 0.0], dtype=torch.float64)
    own, wider = (
        Grid(sigmas=sigmas, sigma_range=ends, noise_levels=mixture().noise_levels)
        for ends in ((0.1, 60.0), (0.002, 80.0))
    )
    assert solver.times(own)[0] == pytest.approx(1.0)
    assert solver.times(wider)[0] < 0.999
    assert solver.times(own)[-1] == solver.times(wider)[-1] == 0
    set_by_hand: Any = SOLVERS["general"](schedule="vp", sigma_min=0.002, sigma_max=80.0)  # type: ignore[call-arg]
    assert torch.equal(set_by_hand.times(own), solver.times(wider))


@pytest.mark.parametrize("name", CHURNING)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"S_churn": -1.0}, "S_churn must be >= 0"),
        ({"S_churn": math.inf}, "S_churn must be >= 0"),
        ({"S_min": 2.0, "S_max": 1.0}, "0 <= S_min <= S_max"),
        ({"S_noise": -0.1}, "S_noise must be >= 0"),
        ({"S_churn": math.nan}, "S_churn must be >= 0"),
    ],
    ids=str,
)
def test_impossible_churn_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    build: Any = SOLVERS[name]
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize("name", ["two-stage", "general"])
@pytest.mark.parametrize("alpha", [0.0, -0.5, math.inf, math.nan])
def test_impossible_alpha_is_refused(name: str, alpha: float) -> None:
    build: Any = SOLVERS[name]
    with pytest.raises(ConfigError, match="alpha > 0"):
        build(alpha=alpha)


@pytest.mark.parametrize("options", [{}, {"schedule": "ve"}, {"schedule": "vp"}], ids=str)
@pytest.mark.parametrize("name", ["two-stage", "general"])
def test_alpha_past_zero_noise_is_refused(name: str, options: dict[str, Any]) -> None:
    solver = {"name": name, "alpha": 4.0, **(options if name == "general" else {})}
    with pytest.raises(ConfigError, match="reaches past zero noise"):
        run({"solver": solver})


def test_alpha_between_discrete_levels_is_refused() -> None:
    config = {"solver": {"name": "two-stage", "alpha": 0.55}, "schedule": {"num_steps": 5}}
    with pytest.raises(ConfigError, match="discrete ones only; use alpha = 1"):
        run(config, Discrete(mixture()))


@pytest.mark.parametrize("name", ["dpmpp", "unipc", "lms", "ipndm", "deis"])
def test_equal_noise_levels_are_refused_where_a_step_divides_by_their_distance(name: str) -> None:
    config = {"solver": name, "schedule": {"num_steps": 100}}
    with pytest.raises(ConfigError, match=f"{name} cannot take such steps; lower num_steps"):
        run(config, Discrete(mixture()))
    few = {"solver": name, "schedule": {"num_steps": 10}}
    assert run(few, Discrete(mixture()))[-1].x.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "hein"}, "no solver 'hein'; did you mean 'heun'"),
        ({"schedule": "karras"}, "no schedule 'karras'"),
        ({"scaling": "ve"}, "no scaling 've'"),
        ({"solver": "euler", "alpha": 0.5}, "no effect with solver: euler"),
        ({"epsilon_s": 0.0}, "epsilon_s"),
    ],
    ids=str,
)
def test_general_refuses(options: dict[str, Any], message: str) -> None:
    build: Any = SOLVERS["general"]
    with pytest.raises(ConfigError, match=message):
        build(**options)
