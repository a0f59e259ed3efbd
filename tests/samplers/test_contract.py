"""What every registered solver and schedule promises."""

import itertools
import math
from typing import Any

import pytest
import torch
from ideal_cases import (
    CHURNING,
    FREE_SOLVERS,
    RANGED,
    SEEDS,
    SHAPE,
    Discrete,
    Listener,
    Timesteps,
    mixture,
    run,
)
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.base import SCHEDULES, SOLVERS, Grid, Schedule, Solver
from genlab.samplers.loop import sample_steps, solve
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import karras_sigmas

# What makes a solver draw noise.
CHURN: dict[str, Any] = {"S_churn": 6, "S_noise": 1.01}
RANDOM: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "ddim": {"eta": 1.0},
    "deis": {},
    "dpm2-ancestral": {},
    "dpmpp": {"sde": True},
    "dpmpp-2s": {},
    "dpmpp-sde": {},
    "adaptive": {},
    "euler-ancestral": {},
    "flow": {},
    "flow-sde": {},
    "ipndm": {},
    "lms": {},
    "unipc": {},
}
ALWAYS_RANDOM = ("ddpm", "dpm2-ancestral", "dpmpp-2s", "euler-ancestral", "flow-sde", "restart")
ONCE_A_STEP = ("ddim", "ddpm", "deis", "dpmpp", "euler", "euler-ancestral", "flow-sde", "ipndm",
               "lms", "unipc")  # fmt: skip
PAIRS = [
    pair
    for pair in itertools.product(FREE_SOLVERS, SCHEDULES)
    # Six of a scheduler's timesteps do not come near the interval of the default restart.
    if pair != ("restart", "diffusers")
]


def two_steps(solver: Solver, x: Tensor) -> Tensor:
    """The end of a run from noise level 3 over 1 to 0."""
    sigmas = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
    model = mixture()
    grid = Grid(sigmas=sigmas, sigma_range=(1.0, 3.0), noise_levels=model.noise_levels)
    *_, last = solve(solver, model, x, grid, condition=Condition(), noise=NoiseStream([0]))
    return last.x


def model_for(schedule: str, solver: str) -> Denoiser:
    """A model that both suit: one with timesteps for the schedules that pick them."""
    if schedule in RANGED:
        return mixture()
    return Timesteps(mixture(), interpolate=not SOLVERS[solver]().on_grid)


def named(schedule: str, num_steps: int) -> dict[str, Any]:
    """The schedule with so many steps; one that lists its levels lists them."""
    options: dict[str, Any] = {"name": schedule, "num_steps": num_steps}
    if schedule == "levels":
        options["sigmas"] = karras_sigmas(num_steps, 0.06, 50.0).tolist()
    return options


@pytest.mark.parametrize(("solver", "schedule"), PAIRS)
def test_run_reports_every_step(solver: str, schedule: str) -> None:
    listener = Listener(model_for(schedule, solver))
    steps = run({"solver": solver, "schedule": named(schedule, 6)}, listener)
    count = 6 + 2 * 3 if solver == "restart" else 6  # two times: the noise, and two steps down
    assert [step.index for step in steps] == list(range(count))
    assert {step.num_steps for step in steps} == {count}
    assert {step.restarts for step in steps} == {solver == "restart"}
    assert steps[-1].sigma_next == 0
    assert all(a.sigma_next == pytest.approx(b.sigma) for a, b in itertools.pairwise(steps))
    for step in steps:
        assert step.x.shape == step.x0.shape == (len(SEEDS), *SHAPE)
        assert step.x.dtype == torch.float64
        assert step.x.isfinite().all()
    # The denoiser heard of the same steps, before each of them.
    assert [(s.index, s.sigma, s.sigma_next) for s in listener.steps] == [
        (s.index, s.sigma, s.sigma_next) for s in steps
    ]
    cost: int | None = 6 if solver in ONCE_A_STEP else 11  # N, and 2 N - 1, as docstrings say
    cost = {"restart": 11 + 2 * 4, "adaptive": None}.get(solver, cost)
    assert SOLVERS[solver]().nfe(6) == cost
    assert len(listener.sigmas) == (cost or len(listener.sigmas))
    assert listener.evaluations == len(listener.sigmas) * len(SEEDS)


@pytest.mark.parametrize(("solver", "schedule"), [pair for pair in PAIRS if pair[0] != "restart"])
def test_single_step_is_one_denoising(solver: str, schedule: str) -> None:
    """From the first noise level straight to 0: the answer is the denoised estimate itself."""
    config = {"solver": solver, "schedule": named(schedule, 1)}
    [step] = run(config, model_for(schedule, solver))
    torch.testing.assert_close(step.x, step.x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_many_steps_reach_the_data(solver: str) -> None:
    """Samples of a class lie where its Gaussian is, as far as the class's own spread goes."""
    labels = torch.zeros(16, dtype=torch.int64)
    config = {"solver": solver, "schedule": {"num_steps": 24}}
    x = run(config, seeds=range(16), condition=Condition(labels=labels))[-1].x
    standard = (x - mixture().means[0]) / mixture().stds[0]
    assert standard.mean().abs() < 0.35  # 128 numbers: three standard errors and a little bias
    assert 0.7 < standard.std() < 1.3


@pytest.mark.parametrize("solver", [name for name in FREE_SOLVERS if name not in ALWAYS_RANDOM])
def test_deterministic_setting_draws_latents_only(solver: str) -> None:
    fresh = NoiseStream(SEEDS)
    fresh.randn(SHAPE)
    used = NoiseStream(SEEDS)
    stack = Sampler.from_config({"solver": solver, "schedule": {"num_steps": 3}})
    common: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    list(sample_steps(stack, mixture(), noise=used, **common))
    assert torch.equal(used.randn(()), fresh.randn(()))


@pytest.mark.parametrize("solver", FREE_SOLVERS)
@pytest.mark.parametrize("seeds", [(5,), (3, 5, 8)])
def test_noise_of_a_sample_ignores_its_batch(solver: str, seeds: tuple[int, ...]) -> None:
    """The noise of seed 5 is the same alone and in company, and so is its image."""
    config = {"solver": {"name": solver, **RANDOM.get(solver, CHURN)}}
    alone = run(config, seeds=(5,))[-1].x[0]
    inside = run(config, seeds=seeds)[-1].x[seeds.index(5)]
    torch.testing.assert_close(inside, alone, rtol=0, atol=1e-12)
    without = run({"solver": "euler"}, seeds=(5,))[-1].x[0]
    assert (alone - without).abs().max() > 1e-3


@pytest.mark.parametrize("solver", CHURNING)
def test_churn_raises_noise_within_its_limits(solver: str) -> None:
    churn = {"S_churn": 1e9, "S_min": 1.0, "S_max": 10.0}
    quiet = run({"solver": solver})
    raised = run({"solver": {"name": solver, **churn}})
    for before, after in zip(quiet, raised, strict=True):
        factor = math.sqrt(2) if 1 <= before.sigma <= 10 else 1.0
        assert after.sigma == pytest.approx(factor * before.sigma)


@pytest.mark.parametrize("solver", [name for name in CHURNING if SOLVERS[name]().on_grid])
def test_discrete_levels_are_kept_to(solver: str) -> None:
    """Schedule and churn go through the model's rounding, so that it is asked for its own only."""
    model = Discrete(mixture())
    run({"solver": {"name": solver, "S_churn": 9}, "schedule": {"num_steps": 9}}, model)
    asked = torch.tensor(model.sigmas, dtype=torch.float64)
    # Up to the rounding of a solver that goes to its own time and back.
    torch.testing.assert_close(asked, model.round_sigma(asked), rtol=1e-12, atol=0)
    assert asked.max() > 40  # churn may go beyond, as officially
    assert asked.min() > 0.049


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_gradients_flow_when_wanted(solver: str) -> None:
    x = torch.full((1, *SHAPE), 3.0, dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(two_steps(SOLVERS[solver](), x).sum(), x)
    assert gradient.abs().min() > 0
    with torch.no_grad():
        assert not two_steps(SOLVERS[solver](), x).requires_grad


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_float32_state_stays_float32(solver: str) -> None:
    """On a device without float64 the state is float32, and the noise is the same, rounded."""
    x = torch.full((1, *SHAPE), 3.0)
    make: Any = SOLVERS[solver]
    ends = []
    for dtype in (torch.float32, torch.float64):
        end = two_steps(make(**RANDOM.get(solver, CHURN)), x.to(dtype))
        assert end.dtype == dtype
        ends.append(end.double())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_says_what_it_is(name: str) -> None:
    solver = SOLVERS[name]()
    assert isinstance(solver, Solver)
    text = str(SOLVERS[name].__doc__)
    for word in ("Choose it", f"Order {solver.order}", "network evaluation", "Source:"):
        assert word in text


@pytest.mark.parametrize("name", RANGED)
def test_schedule_keeps_to_what_the_model_knows(name: str) -> None:
    schedule = SCHEDULES[name]()
    assert isinstance(schedule, Schedule)
    model = Discrete(mixture())
    low, high = schedule.sigma_range(model.noise_levels)
    assert (low, high) == (0.05, 40.0)
    sigmas: Tensor = schedule(model.noise_levels)
    assert sigmas.dtype == torch.float64
    assert len(sigmas) == schedule.num_steps + 1
    assert sigmas[-1] == 0
    assert (sigmas[:-1].diff() < 0).all()
    assert low - 1e-9 <= sigmas[-2] < sigmas[0] <= high + 1e-9
    rounded = Grid.of(schedule, model.noise_levels).sigmas
    assert torch.equal(rounded[:-1], model.round_sigma(sigmas[:-1]))


@pytest.mark.parametrize("name", RANGED)
def test_range_that_the_model_does_not_know_is_refused(name: str) -> None:
    make: Any = SCHEDULES[name]
    with pytest.raises(ConfigError, match=r"the model knows 0\.05 to 40 only"):
        make(sigma_min=0.01, sigma_max=0.04)(Discrete(mixture()).noise_levels)
