"""Flow matching in its own time: exact solutions, the stochastic sampler, the schedule."""

import itertools
import math
from typing import Any

import pytest
import torch
from ideal_cases import SHAPE, Discrete, mixture, run
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.flow import LARGEST, PATHS
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.samplers.base import SCHEDULES
from genlab.samplers.editing.inversion import invert
from genlab.samplers.solvers.flow import FlowODE
from genlab.samplers.solvers.flow_sde import DIFFUSIONS

MEAN, STD = 0.7, 0.4


def gaussian() -> GaussianMixtureDenoiser:
    """One Gaussian: its flow only shrinks and shifts, by known amounts."""
    means = torch.full((1, *SHAPE), MEAN, dtype=torch.float64)
    return GaussianMixtureDenoiser(
        torch.ones(1).double(), means, torch.tensor([STD], dtype=torch.float64)
    )


def latents() -> Tensor:
    return NoiseStream([0, 1]).randn(SHAPE, torch.float32).double()


def images(path: str, num_steps: int, **solver: Any) -> Tensor:
    config = {
        "solver": {"name": "flow", "path": path, "full_last_step": True, **solver},
        "schedule": {"name": "flow", "path": path, "num_steps": num_steps},
    }
    return run(config, gaussian(), seeds=[0, 1])[-1].x


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_the_exact_flow_is_followed_to_fourth_order(path: str) -> None:
    """Pure noise z ends at mean + std z, whatever the path."""
    truth = MEAN + STD * latents()
    errors = [(images(path, n, method="rk4") - truth).norm() for n in (16, 32, 64)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(4, abs=0.3)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_inversion_comes_back_to_the_latents(path: str) -> None:
    solver = FlowODE(path=path, method="rk4", full_last_step=True)
    schedule = SCHEDULES.build("flow", num_steps=64, path=path)
    sigmas = schedule(gaussian().noise_levels)
    given = MEAN + STD * latents()
    steps = list(invert(solver, gaussian(), given, sigmas.flip(0), Condition()))
    assert [s.sigma_next for s in steps] == sigmas.flip(0)[1:].tolist()
    found = steps[-1].x / steps[-1].sigma_next
    # The variance-preserving path is steep at the data, where the first of its even steps lies.
    tolerance = 0.1 if path == "vp" else 1e-4
    torch.testing.assert_close(found, latents(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_any_strength_of_noise_leads_to_the_same_images(diffusion: str, method: str) -> None:
    config = {
        "solver": {"name": "flow-sde", "diffusion": diffusion, "method": method, "norm": 0.7},
        "schedule": {"name": "flow", "num_steps": 80, "last_step": 0.01, "sigma_max": 100.0},
    }
    x = run(config, gaussian(), seeds=range(200))[-1].x
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.05)  # 1600 numbers: 4 standard errors
    # The last step gives the mean of what could follow, so a little of the spread is missing.
    assert float(x.std()) == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("last", ["mean", "euler", "tweedie"])
def test_the_last_step_is_free_of_noise(last: str) -> None:
    config = {
        "solver": {"name": "flow-sde", "norm": 0.0, "last": last},
        "schedule": {"name": "flow", "num_steps": 40},
    }
    deterministic = {"solver": {"name": "flow", "method": "euler"}, "schedule": config["schedule"]}
    a, b = (run(c, mixture())[-1].x for c in (config, deterministic))
    torch.testing.assert_close(a, b)


def test_noise_that_is_infinite_at_the_start_is_refused() -> None:
    config = {"solver": {"name": "flow-sde", "diffusion": "sbdm"}, "schedule": {"name": "flow"}}
    with pytest.raises(ConfigError, match="infinite at pure noise"):
        run(config, mixture())


def test_times_are_even_and_keep_to_what_the_model_knows() -> None:
    def times(model: Any, **options: Any) -> Tensor:
        sigmas = SCHEDULES.build("flow", **options)(model.noise_levels)
        assert sigmas[-1] == 0
        return PATHS[options.get("path", "linear")].t(sigmas)

    quarters = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    for path in ("linear", "gvp"):
        torch.testing.assert_close(times(mixture(), num_steps=4, path=path), quarters)
    assert SCHEDULES.build("flow", num_steps=2)(mixture().noise_levels)[0] == LARGEST
    with_last = times(mixture(), num_steps=4, last_step=0.1)
    torch.testing.assert_close(with_last[:-1], torch.linspace(0, 0.9, 4).double())
    of_discrete = times(Discrete(mixture()), num_steps=3)  # knows sigma from 0.05 to 40
    assert of_discrete[:-1].tolist() == pytest.approx([1 / 41, 0.4884, 1 / 1.05], abs=1e-4)


@pytest.mark.parametrize(
    ("entry", "options", "cure"),
    [
        ("solver", {"name": "flow", "method": "huen"}, "heun"),
        ("solver", {"name": "flow", "path": "straight"}, "linear"),
        ("solver", {"name": "flow-sde", "diffusion": "sigmas"}, "sigma"),
        ("solver", {"name": "flow-sde", "last": "median"}, "mean"),
        ("solver", {"name": "flow-sde", "norm": -1}, "norm >= 0"),
        ("schedule", {"name": "flow", "num_steps": 0}, "num_steps"),
        ("schedule", {"name": "flow", "last_step": 1.5}, "last_step"),
        ("schedule", {"name": "flow", "sigma_max": -1}, "sigma_max > 0"),
        ("schedule", {"name": "flow", "sigma_max": 1.0, "last_step": 0.6}, "smaller last_step"),
    ],
)
def test_wrong_settings_name_the_cure(entry: str, options: dict[str, Any], cure: str) -> None:
    with pytest.raises(ConfigError, match=cure):
        run({entry: options}, mixture())
