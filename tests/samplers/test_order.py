"""Every solver converges with the order that it declares, on an ODE of known slope."""

from functools import cache
from typing import Any

import pytest
import torch
from ideal_cases import FREE_SOLVERS, run
from torch import Tensor

from genlab.samplers.base import SOLVERS

# Ends at a noise level where the last, always first-order step to 0 is the same for every run:
# errors are taken before it.
RANGE = {"name": "karras", "sigma_min": 0.05, "sigma_max": 20.0}
NUM_STEPS = (32, 48, 72)
RANDOM = ("ddpm", "dpm2-ancestral", "dpmpp-2s", "dpmpp-sde", "euler-ancestral", "flow-sde")
NO_ORDER = (*RANDOM, "restart", "adaptive")  # random, too; and steps that are not of the schedule
VARIANTS: list[tuple[dict[str, Any], int]] = [
    *[({"name": name}, SOLVERS[name].order) for name in FREE_SOLVERS if name not in NO_ORDER],
    *[({"name": "two-stage", "alpha": alpha}, 2) for alpha in (0.5, 2 / 3, 1.1)],
    *[
        ({"name": "general", "solver": solver, "schedule": schedule, "scaling": scaling}, order)
        for solver, order in (("euler", 1), ("heun", 2))
        for schedule in ("linear", "ve", "vp")
        for scaling in ("none", "vp")
    ],
    ({"name": "general", "schedule": "vp", "scaling": "vp", "alpha": 0.5}, 2),
    *[
        ({"name": "flow", "path": path, "method": method}, order)
        for path in ("linear", "gvp", "vp")
        for method, order in (("euler", 1), ("midpoint", 2), ("heun", 2))
    ],
]


def end(solver: dict[str, Any], num_steps: int) -> Tensor:
    """The state at the smallest noise level, after ``num_steps`` steps."""
    return run({"solver": solver, "schedule": {**RANGE, "num_steps": num_steps + 1}})[-2].x


@cache
def truth() -> Tensor:
    """Richardson's extrapolation of two fine Heun runs: two orders beyond either."""
    coarse, fine = (end({"name": "heun"}, n) for n in (240, 480))
    return fine + (fine - coarse) / 3


def slope(solver: dict[str, Any], truth: Tensor) -> float:
    """That of log error against log step size, by least squares."""
    errors = torch.stack([(end(solver, n) - truth).norm() for n in NUM_STEPS])
    steps = torch.log(1 / torch.tensor(NUM_STEPS, dtype=torch.float64))
    steps = steps - steps.mean()
    return float((steps * errors.log()).sum() / steps.square().sum())


@pytest.mark.parametrize(("solver", "order"), VARIANTS, ids=str)
def test_order_of_convergence(solver: dict[str, Any], order: int) -> None:
    # At these step counts the next order still shows: measured slopes are off by up to 0.09.
    assert abs(slope(solver, truth()) - order) < 0.15


def test_order_of_the_adaptive_formula() -> None:
    """Under a tolerance that allows anything, the steps are those between the levels."""
    exact = end({"name": "adaptive", "rtol": 1e-13, "atol": 1e-13}, 4)
    torch.testing.assert_close(exact, truth(), rtol=0, atol=1e-6)
    assert abs(slope({"name": "adaptive", "rtol": 1e9}, exact) - 5) < 0.15
