"""Inversion on the closed-form mixture: there and back, and what has no way back."""

import math
from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Listener, mixture
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.base import SOLVERS, Grid, Solver
from genlab.samplers.editing.inversion import invert_images
from genlab.samplers.loop import solve
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.solvers.ddim import DDIM
from genlab.samplers.solvers.euler import Euler
from genlab.samplers.solvers.heun import Heun
from genlab.samplers.solvers.multistep import DPMSolverPP

LEAST = 0.005
"""Smallest noise level; the error of undoing the step from it to 0 goes with its fourth power."""


def levels(num_steps: int, rho: float = 3.0) -> Tensor:
    schedule = Karras(num_steps=num_steps, sigma_min=LEAST, sigma_max=20.0, rho=rho)
    return schedule(mixture().noise_levels)


def images() -> Tensor:
    """Draws of the mixture's components."""
    model = mixture()
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    return model.means + model.stds.reshape(-1, 1, 1, 1) * noise


def round_trip(solver: Solver, num_steps: int, **options: Any) -> float:
    """Largest error of images that were inverted and drawn again."""
    model, sigmas, x = mixture(), levels(num_steps), images()
    *_, found = invert_images(solver, model, x, sigmas, Condition(), **options)
    assert found.sigma_next == float(sigmas[0])
    grid = Grid(sigmas=sigmas, sigma_range=(LEAST, 20.0), noise_levels=model.noise_levels)
    *_, last = solve(solver, model, found.x, grid, condition=Condition(), noise=NoiseStream([]))
    return float((last.x - x).abs().max())


@pytest.mark.parametrize(
    ("solver", "order", "options"),
    [
        (Euler(), 1, {}),
        (DDIM(), 1, {"ask": "end"}),
        (Heun(), 2, {}),
        (DPMSolverPP(), 2, {}),
    ],
)
def test_the_error_of_a_round_trip_falls_at_the_order_of_the_solver(
    solver: Solver, order: int, options: dict[str, str]
) -> None:
    few, many = (round_trip(solver, steps, **options) for steps in (40, 160))
    measured = math.log(few / many) / math.log(4)
    assert measured > order - 0.4, (few, many)


def test_heun_comes_back_to_the_images() -> None:
    assert round_trip(Heun(), 40) < 0.01
    assert round_trip(Heun(), 40) < 0.1 * round_trip(Euler(), 40)


def test_the_start_without_noise_is_undone_by_the_last_step() -> None:
    """2 x - D(x; s) leads back to x nearer than x itself does, at a smallest level that counts."""
    model, x, s = mixture(), images(), torch.tensor(0.3, dtype=torch.float64)
    sigmas = torch.tensor([20.0, 0.3, 0.0], dtype=torch.float64)
    first, _ = invert_images(Heun(), model, x, sigmas, Condition())
    errors = [(model(start, s, Condition()) - x).abs().max() for start in (first.x, x)]
    assert errors[0] < 0.5 * errors[1]


def test_one_evaluation_more_than_the_steps_between_the_levels() -> None:
    model = Listener(mixture())
    list(invert_images(Euler(), model, images(), levels(10), Condition()))
    assert model.sigmas[:2] == [pytest.approx(LEAST)] * 2  # at the level it arrives at, then leaves
    assert len(model.sigmas) == 10
    model = Listener(mixture())
    list(invert_images(Euler(), model, images(), levels(10), Condition(), ask="end"))
    assert model.sigmas == levels(10)[:-1].flip(0).tolist()


DRAWING: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "dpm2-ancestral": {},
    "dpmpp": {"sde": True},
    "dpmpp-2s": {"eta": 1.0},
    "dpmpp-sde": {},
    "euler-ancestral": {},
    "flow-sde": {},
    "heun": {"S_churn": 5.0},
    "ddim": {"eta": 0.5},
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_solver_that_draws_noise_is_refused(name: str) -> None:
    solver: Any = SOLVERS[name](**DRAWING[name])
    with pytest.raises(ConfigError, match="inversion needs a deterministic sampler"):
        invert_images(solver, mixture(), images(), levels(8), Condition())


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        (Heun(), {"ask": "end"}, "only the euler and ddim solvers"),
        (DDIM(clip=True), {"ask": "end"}, "keep_noise"),
        (Heun(), {"ask": "middle"}, "'middle' of a step"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    solver: Solver, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        invert_images(solver, mixture(), images(), levels(8), Condition(), **options)


def test_levels_must_fall() -> None:
    sigmas = torch.tensor([20.0, 1.0, 5.0, 0.1, 0.0], dtype=torch.float64)
    with pytest.raises(ConfigError, match="levels that fall in every step"):
        invert_images(Heun(), mixture(), images(), sigmas, Condition())
