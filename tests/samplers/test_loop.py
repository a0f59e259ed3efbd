"""The run itself: what it announces, what hooks may do to it, levels that rise, windows."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from ideal_cases import FREE_SOLVERS, SEEDS, SHAPE, Listener, Timesteps, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import ConditionedDenoiser, Denoiser, Prediction, StepInfo
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError
from genlab.samplers.base import SOLVERS, Grid, Solver, SolverStep, StepResult
from genlab.samplers.guidance.base import GUIDANCE, Guidance, When
from genlab.samplers.loop import sample_steps, solve
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.karras import Karras
from genlab.samplers.solvers.heun import Heun

LABELS = Condition(labels=torch.tensor([0, 1, 2, 0]))


class Watcher(Listener):
    """Notes the very states that the model is asked about."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.states: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        self.states.append(x)
        return super().__call__(x, sigma, condition)


def model_for(solver: str) -> Watcher:
    return Watcher(Timesteps(mixture()) if solver == "ddpm" else mixture())


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_a_replaced_state_is_where_the_run_goes_on(solver: str) -> None:
    """Under every solver, whatever it remembers: the next step asks about the new state."""
    new = torch.linspace(-1, 1, 4 * 8, dtype=torch.float64).reshape(4, *SHAPE)
    model = model_for(solver)
    asked: list[int] = []

    def replace(step: SolverStep) -> Tensor | None:
        asked.append(len(model.states))
        return new if step.index == 2 else None

    steps = run({"solver": solver, "schedule": {"num_steps": 6}}, model, hooks=[replace])
    assert torch.equal(steps[2].x, new)
    # Flow solvers keep the state in their path's own frame: to and fro is rounded.
    torch.testing.assert_close(model.states[asked[2]], new, rtol=1e-12, atol=1e-12)
    plain = run({"solver": solver, "schedule": {"num_steps": 6}}, model_for(solver))
    assert torch.equal(plain[1].x, steps[1].x)
    assert (plain[3].x - steps[3].x).abs().max() > 1e-3


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_the_last_step_s_state_is_the_result(solver: str) -> None:
    def erase(step: SolverStep) -> Tensor | None:
        return torch.full_like(step.x, 0.25) if step.sigma_next == 0 else None

    steps = run({"solver": solver, "schedule": {"num_steps": 3}}, model_for(solver), hooks=[erase])
    assert (steps[-1].x == 0.25).all()


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_a_hook_that_returns_the_same_state_changes_nothing(solver: str) -> None:
    config = {"solver": solver, "schedule": {"num_steps": 5}}
    watched = run(config, model_for(solver), hooks=[lambda step: step.x])
    assert torch.equal(watched[-1].x, run(config, model_for(solver))[-1].x)


def test_a_hook_that_projects_the_state_inpaints() -> None:
    """Half of the pixels are kept at their own noise level: they end as they were given."""
    given = mixture().means[:1].expand(4, -1, -1, -1)
    keep = torch.zeros(SHAPE, dtype=torch.bool)
    keep[:, 0] = True

    def project(step: SolverStep) -> Tensor:
        fresh = step.noise.fork(f"inpaint {step.index}").randn(SHAPE, torch.float64)
        return torch.where(keep, given + step.sigma_next * fresh, step.x)

    config = {"schedule": {"num_steps": 12}}
    whole = run(config, hooks=[project])[-1].x
    torch.testing.assert_close(whole[:, keep], given[:, keep])
    assert (whole[:, ~keep] - run(config)[-1].x[:, ~keep]).abs().max() > 1e-3
    # What the hook draws from its fork moves nobody else's noise.
    alone = run(config, seeds=[2], hooks=[lambda step: project(step)[:1]])
    assert (alone[-1].x - whole[2:3])[:, :, 1].abs().max() < 1e-9


def test_hooks_run_in_their_order() -> None:
    seen: list[float] = []
    hooks = [
        lambda step: torch.full_like(step.x, 1.0),
        lambda step: seen.append(float(step.x.mean())),
        lambda step: 2 * step.x,
    ]
    steps = run({"schedule": {"num_steps": 2}}, hooks=hooks)
    assert seen == [1.0, 1.0]
    assert all((step.x == 2).all() for step in steps)


@dataclass(frozen=True, kw_only=True)
class Rising:
    """A schedule whose levels rise again: a restart."""

    num_steps: int = 6

    def sigma_range(self, noise_levels: NoiseLevels) -> tuple[float, float]:
        return 0.2, 20.0

    def __call__(self, noise_levels: NoiseLevels) -> Tensor:
        return torch.tensor([20.0, 4.0, 0.5, 3.0, 1.0, 0.2, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "solver", [name for name in FREE_SOLVERS if name not in ("ddpm", "restart")]
)
def test_levels_that_rise_again_are_reached_by_noise(solver: str) -> None:
    model = model_for(solver)
    sampler = Sampler(solver=SOLVERS[solver](), schedule=Rising())
    asked: list[int] = []
    hooks = [lambda step: asked.append(len(model.states))]
    common: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    steps = list(sample_steps(sampler, model, noise=NoiseStream(SEEDS), hooks=hooks, **common))
    assert [s.sigma_next for s in steps] == [4.0, 0.5, 3.0, 1.0, 0.2, 0.0]
    assert asked[2] == asked[1], "adding noise costs no evaluation"
    assert asked[3] > asked[2]
    added = (steps[2].x - steps[1].x) / math.sqrt(3.0**2 - 0.5**2)
    assert 0.5 < float(added.std()) < 1.6  # 32 unit normal numbers
    assert torch.equal(steps[2].x0, steps[1].x0)
    assert steps[-1].x.isfinite().all()


def test_a_markov_chain_does_not_rise() -> None:
    sampler = Sampler(solver=SOLVERS["ddpm"](), schedule=Rising())
    common: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    with pytest.raises(ConfigError, match="rise again; take heun"):
        list(sample_steps(sampler, mixture(), noise=NoiseStream(SEEDS), **common))


def test_levels_that_rise_without_noise_go_back_the_way() -> None:
    """Heun from an image up to noise and down again, at the levels of one schedule."""
    model = mixture()
    levels = Karras(num_steps=60, sigma_min=0.05, sigma_max=20.0, rho=3.0)(model.noise_levels)[:-1]
    x = model.means + 0.1
    for sigmas in (levels.flip(0), levels):
        grid = Grid(sigmas=sigmas, sigma_range=(0.05, 20.0), noise_levels=model.noise_levels)
        noise = NoiseStream([])  # draws nothing
        *_, last = solve(Heun(), model, x, grid, condition=Condition(), noise=noise, restarts=False)
        x = last.x
    torch.testing.assert_close(x, model.means + 0.1, rtol=0, atol=2e-3)


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(Solver):
    """Second order by the slope of the step before: a solver with a history of its own."""

    order: ClassVar[int] = 2

    def step(
        self, denoiser: ConditionedDenoiser, x: Tensor, step: StepInfo, memory: Any
    ) -> StepResult:
        x0 = denoiser(x, step.level)
        slope, h = (x - x0) / step.level, step.sigma_next - step.level
        if memory is None:
            return StepResult(x=x + h * slope, x0=x0, memory=(slope, h))
        before, h_before = memory
        ahead = slope + 0.5 * h / h_before * (slope - before)
        return StepResult(x=x + h * ahead, x0=x0, memory=(slope, h))


def test_a_solver_with_history_is_given_it() -> None:
    def end(solver: Solver, num_steps: int) -> Tensor:
        schedule = Karras(num_steps=num_steps + 1, sigma_min=0.05, sigma_max=20.0)
        common: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
        sampler = Sampler(solver=solver, schedule=schedule)
        return list(sample_steps(sampler, mixture(), noise=NoiseStream(SEEDS), **common))[-2].x

    truth = end(Heun(), 600)
    errors = [float((end(AdamsBashforth(), n) - truth).norm()) for n in (32, 64, 128)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - 2) < 0.3 for slope in slopes)


class Switch(Guidance):
    """Another model below half of the run: what stitching models together needs."""

    def __init__(self, inner: Denoiser, other: Denoiser) -> None:
        super().__init__(inner, when=When(steps=(0, 0.5)), others=[other])
        self.other = other

    def guide(self, x: Tensor, sigma: Tensor, conditions: Sequence[Condition]) -> list[Prediction]:
        return self.other.predict_each(x, sigma, conditions)


def test_a_denoiser_may_switch_between_models_of_different_families() -> None:
    """One that knows timesteps takes the first half of the steps, another the rest."""
    small, large = Timesteps(mixture()), Listener(mixture())
    cfg: Any = GUIDANCE["cfg"](scale=2.0)  # type: ignore[call-arg]
    guided = cfg(Switch(large, small))
    run({"schedule": {"num_steps": 6}}, guided, condition=LABELS)
    # Heun: two evaluations a step, both by one model; guided halves are one batch in either.
    assert small.batches == [8] * 6
    assert large.batches == [8] * 5
    assert isinstance(guided, Guidance)
    assert guided.evaluations == 8 * 11
    assert [step.index for step in small.steps] == list(range(6)), "both hear of every step"


def test_a_window_switches_an_inner_guidance_off_at_no_cost() -> None:
    model = Listener(mixture())
    config = {
        "solver": "euler",
        "schedule": {"num_steps": 12},
        "guidance": [
            {"name": "cfg", "scale": 3.0, "when": {"sigma": [1.0, 30.0]}},
            {"name": "cfg", "scale": 1.0},
        ],
    }
    steps = run(config, model, condition=LABELS)
    inside = [1.0 < step.level <= 30.0 for step in steps]
    assert 0 < sum(inside) < 12
    assert model.batches == [8 if guided else 4 for guided in inside]
    always = run({**config, "guidance": [{"name": "cfg", "scale": 3.0}]}, condition=LABELS)
    never = run({**config, "guidance": []}, condition=LABELS)
    assert (steps[-1].x - always[-1].x).abs().max() > 1e-4
    assert (steps[-1].x - never[-1].x).abs().max() > 1e-4


@pytest.mark.parametrize("solver", FREE_SOLVERS)
def test_a_window_is_decided_once_a_step_and_before_churn(solver: str) -> None:
    """Both evaluations of a step are guided alike, also where churn lifts it over the edge."""
    churn = {"S_churn": 3.0} if solver in ("dpm2", "euler", "heun", "general") else {}
    model = model_for(solver)
    when = {"time": [0.4, 0.8]}
    config = {
        "solver": {"name": solver, **churn},
        "schedule": {"num_steps": 8},
        "guidance": [{"name": "cfg", "scale": 2.0, "when": when}],
    }
    if solver == "ddpm":
        config["solver"] = {"name": "ddpm", "variance": "fixed_small"}
    asked = [0]
    hooks = [lambda step: asked.append(len(model.batches))]
    steps = run(config, model, condition=LABELS, hooks=hooks)
    time = model.noise_levels.time
    inside = [0.4 <= float(time(torch.tensor(s.level).double())) <= 0.8 for s in steps]
    for guided, (start, end) in zip(inside, itertools.pairwise(asked), strict=True):
        assert set(model.batches[start:end]) <= {8 if guided else 4}
    assert {4, 8} == set(model.batches)


def step_at(level: float, index: int = 0, num_steps: int = 10) -> StepInfo:
    return StepInfo(
        index=index, num_steps=num_steps, level=level, sigma=level, sigma_next=0.0,
        noise=NoiseStream([]),
    )  # fmt: skip


def test_windows_hold_their_ends_as_they_say() -> None:
    levels = mixture().noise_levels
    sigma = When(sigma=(1.0, 2.0))
    assert [sigma.holds(step_at(s), levels) for s in (1.0, 1.5, 2.0, 2.1)] == [
        False, True, True, False,
    ]  # fmt: skip
    shares = When(steps=(0.25, 0.55))
    held = [i for i in range(10) if shares.holds(step_at(1.0, i), levels)]
    assert held == [2, 3, 4]  # from int(2.5) to before int(5.5)
    both = When(sigma=(1.0, 2.0), steps=(0, 0.5))
    assert both.holds(step_at(1.5, 4), levels)
    assert not both.holds(step_at(1.5, 5), levels)
    discrete = Discrete(T=10, schedule="cosine")
    time = When(time=(0.5, 1.0))
    kept = [time.holds(step_at(float(level)), discrete) for level in discrete.levels]
    assert kept == [False] * 4 + [True] * 6  # time is (t + 1) / T


@pytest.mark.parametrize("off", [-3e-7, 0.0, 3e-7])
def test_a_level_within_rounding_of_an_end_stands_on_it(off: float) -> None:
    """Below an end, on it or above: the low end of sigma is outside, all others are inside."""
    levels = mixture().noise_levels
    window = When(sigma=(1.0, 2.0))
    assert not window.holds(step_at(1.0 + off), levels)
    assert window.holds(step_at(2.0 + off), levels)
    level = 3.0
    time = float(levels.time(torch.tensor(level).double()))
    assert When(time=(time + off, 1.0)).holds(step_at(level), levels)
    assert When(time=(0.0, time + off)).holds(step_at(level), levels)
    share = When(steps=(0.29 + off / 100, 0.58 + off / 100))  # 0.29 * 100 is 28.999999999999996
    assert [i for i in (28, 29, 57, 58) if share.holds(step_at(1.0, i, 100), levels)] == [29, 57]


def test_windows_that_cannot_overlap_are_known_to() -> None:
    assert When(sigma=(0.0, 1.0)).is_apart_from(When(sigma=(1.0, 2.0)))
    assert When(steps=(0.5, 1.0)).is_apart_from(When(steps=(0.0, 0.5)))
    assert not When(time=(0.0, 0.5)).is_apart_from(When(time=(0.5, 1.0)))  # both hold 0.5
    assert not When(time=(0.0, 0.4)).is_apart_from(When(sigma=(10.0, 20.0)))  # who knows
    assert not When().is_apart_from(When(sigma=(1.0, 2.0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": [2.0, 1.0]}, r"when\.sigma needs 0 <= low <= high, got \[2\.0, 1\.0\]"),
        ({"time": [0.0, 1.5]}, r"when\.time lies between 0 and 1"),
        ({"steps": [-0.1, 0.5]}, r"when\.steps needs 0 <= low"),
        ({"sigma": [1.0]}, "when.sigma takes"),
        ({"sigmas": [1.0, 2.0]}, "no setting 'when.sigmas'; did you mean 'sigma'"),
        ({"sigma": "all"}, "when.sigma takes"),
    ],
    ids=str,
)
def test_impossible_windows_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampler.from_config({"guidance": [{"name": "cfg", "when": options}]})


@pytest.mark.parametrize("solver", [name for name in SOLVERS if not SOLVERS[name]().on_grid])
def test_solvers_between_the_levels_need_a_model_that_knows_them(solver: str) -> None:
    """Refused with those that would do; a model that interpolates takes them."""
    config = {"solver": solver, "schedule": {"name": "respaced", "num_steps": 5}}
    with pytest.raises(ConfigError, match=f"the {solver} solver asks .* one of .*heun.* inter"):
        run(config, Timesteps(mixture()))
    assert run(config, Timesteps(mixture(), interpolate=True))[-1].x.isfinite().all()


def test_options_decide_whether_a_solver_asks_between_the_levels() -> None:
    schedule = {"name": "respaced", "num_steps": 5}
    run({"solver": {"name": "flow", "method": "heun"}, "schedule": schedule}, Timesteps(mixture()))
    solver = {"name": "flow", "method": "midpoint"}
    with pytest.raises(ConfigError, match="the flow solver asks"):
        run({"solver": solver, "schedule": schedule}, Timesteps(mixture()))


def test_a_solver_that_is_not_registered_is_named_by_its_class() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Between(Heun):
        on_grid: ClassVar[bool] = False

    sampler = Sampler(solver=Between(), schedule=Karras(sigma_min=0.1, sigma_max=50.0))
    common: Any = {"condition": Condition(), "image_shape": SHAPE, "device": "cpu"}
    with pytest.raises(ConfigError, match="Between asks"):
        list(sample_steps(sampler, Timesteps(mixture()), noise=NoiseStream(SEEDS), **common))
