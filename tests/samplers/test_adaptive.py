"""The adaptive solver: its tolerance, its batches, and torchdiffeq beside it."""

import math
from typing import Any

import pytest
import torch
from ideal_cases import SEEDS, SHAPE, Listener, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError, SamplingError
from genlab.samplers.base import SOLVERS

ENDS = {"name": "karras", "num_steps": 2}


def adaptive(model: Denoiser | None = None, tolerance: float = 1e-3, **options: Any) -> Tensor:
    solver = {"name": "adaptive", "rtol": tolerance, "atol": tolerance}
    return run({"solver": solver, "schedule": ENDS}, model, **options)[-1].x


def test_the_error_follows_the_tolerance() -> None:
    truth = adaptive(tolerance=1e-11)
    errors = [float((adaptive(tolerance=t) - truth).abs().max()) for t in (1e-3, 1e-5, 1e-7)]
    assert errors[0] < 1e-2  # a run makes about ten steps of an error of the tolerance each
    assert errors[1] < 1e-4
    assert errors[2] < 1e-6
    fine = run({"solver": "heun", "schedule": {"num_steps": 1200}})[-1].x
    torch.testing.assert_close(truth, fine, rtol=0, atol=3e-5)  # that of Heun


def test_a_lower_tolerance_costs_more() -> None:
    costs = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        model = Listener(mixture())
        adaptive(model, tolerance)
        costs.append(len(model.sigmas))
    assert costs == sorted(set(costs))


def test_it_is_torchdiffeq_s_dopri5() -> None:
    """The same method under the same norm: as near to the truth for as many evaluations."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    model, tolerance, asked = mixture(), 1e-6, [0]

    def slope(time: Tensor, x: Tensor) -> Tensor:
        asked[0] += 1
        return x - model(x, time.exp(), Condition())

    times = torch.tensor([80.0, 0.002], dtype=torch.float64).log()
    start = 80 * NoiseStream(SEEDS[:1]).randn(SHAPE).double()
    solved = torchdiffeq.odeint(
        slope, start, times, rtol=tolerance, atol=tolerance, method="dopri5"
    )
    theirs = model(solved[-1], torch.tensor(0.002).double(), Condition())
    ours = Listener(mixture())
    torch.testing.assert_close(
        adaptive(ours, tolerance, seeds=SEEDS[:1]), theirs, rtol=0, atol=20 * tolerance
    )
    assert len(ours.sigmas) < 1.3 * asked[0]


def test_samples_have_steps_of_their_own() -> None:
    """Alone and beside others an image is the same, though they need more or fewer steps."""
    whole = adaptive(seeds=range(8))
    counts = set()
    for seed in range(8):
        model = Listener(mixture())
        alone = adaptive(model, seeds=[seed])
        torch.testing.assert_close(alone[0], whole[seed], rtol=0, atol=1e-12)
        counts.add(len(model.sigmas))
    assert len(counts) > 1


def test_nothing_is_carried_over_the_edge_of_a_window() -> None:
    """What the last stage of a step was told under guidance is no slope of the next, without."""
    window = [{"name": "cfg", "scale": 5.0, "when": {"sigma": [0.3, 3.0]}}]

    def end(tolerance: float) -> Tensor:
        solver = {"name": "adaptive", "rtol": tolerance, "atol": tolerance}
        config = {"solver": solver, "schedule": {"num_steps": 6}, "guidance": window}
        return run(config, condition=Condition(labels=torch.tensor([0, 1, 2, 0])))[-1].x

    assert float((end(1e-3) - end(1e-9)).abs().max()) < 0.03


def test_guidance_with_a_memory_is_refused() -> None:
    """A batch is evaluated until its last sample arrives, which all memories would see."""
    labels = Condition(labels=torch.tensor([0, 1, 2, 0]))
    config: Any = {
        "solver": "adaptive",
        "schedule": ENDS,
        "guidance": [{"name": "apg", "scale": 3}],
    }
    with pytest.raises(ConfigError, match="the apg guidance remembers evaluations"):
        run(config, condition=labels)
    config["guidance"][0]["momentum"] = 0.0
    whole = run(config, condition=labels)[-1].x
    alone = run(config, seeds=SEEDS[:1], condition=Condition(labels=torch.tensor([0])))[-1].x
    torch.testing.assert_close(whole[:1], alone)


def test_levels_on_the_way_are_stopped_at() -> None:
    model = Listener(mixture())
    config = {"solver": "adaptive", "schedule": {"name": "levels", "sigmas": [50.0, 3.0, 0.01]}}
    asked = [0]
    steps = run(config, model, hooks=[lambda step: asked.append(len(model.sigmas))])
    assert [step.sigma_next for step in steps] == [3.0, 0.01, 0.0]
    # The slope where a step ends is that where the next begins: it is not asked for twice.
    assert (asked[1] - 1) % 6 == (asked[2] - asked[1]) % 6 == 0
    assert model.sigmas[asked[1] - 1] == pytest.approx(3.0)
    x0 = mixture()(steps[0].x, torch.tensor(3.0).double(), Condition())
    torch.testing.assert_close(steps[0].x0, x0)


class Noisy(Listener):
    """A model whose answers jump: no step is short enough."""

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return super().__call__(x, sigma, condition) + torch.randn_like(x)


@pytest.mark.parametrize("wrong", [Noisy, None], ids=["noisy", "nan"])
def test_a_tolerance_out_of_reach_ends_the_run(wrong: Any) -> None:
    model = mixture()
    if not wrong:
        model.means = model.means * math.nan
    with pytest.raises(SamplingError, match="cannot reach rtol 1e-06"):
        adaptive(wrong(model) if wrong else model, 1e-6, seeds=[0])


def test_evaluations_are_told_afterwards() -> None:
    assert SOLVERS["adaptive"]().nfe(10) is None


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}, {"rtol": math.inf}], ids=str)
def test_impossible_tolerances_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="rtol > 0 and atol >= 0"):
        SOLVERS.build("adaptive", **options)
