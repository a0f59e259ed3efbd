"""The schedule of diffusers' schedulers, against theirs."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from genlab.diffusion.discrete import Discrete
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.preconditioning import EDM
from genlab.errors import ConfigError
from genlab.samplers.schedules.timesteps import Timesteps

# diffusers' own use of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def model(T: int) -> NoiseLevels:
    """Those of a model of T timesteps."""
    return Discrete(T=T, beta_start=1e-3, beta_end=0.02)


def theirs(scheduler: Any, num_steps: int) -> list[float]:
    scheduler.set_timesteps(num_steps)
    return [float(t) for t in scheduler.timesteps]


@pytest.mark.parametrize("T", [1000, 250])
@pytest.mark.parametrize("num_steps", [1, 7, 50, 99])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers(T: int, num_steps: int, spacing: str) -> None:
    offset = 1 if spacing == "leading" else 0
    chain: Any = DDIMScheduler(T, timestep_spacing=spacing, steps_offset=offset)
    schedule = Timesteps(num_steps=num_steps, spacing=spacing, offset=offset)
    if num_steps > 1 or spacing != "linspace":  # theirs begins at 0 then, a run of no noise
        assert schedule.timesteps(T).tolist() == theirs(chain, num_steps)
    if spacing != "trailing" and num_steps < 99:
        multistep: Any = DPMSolverMultistepScheduler(T, timestep_spacing=spacing)
        schedule = Timesteps(num_steps=num_steps, spacing=spacing, open_end=True)
        assert schedule.timesteps(T).tolist() == theirs(multistep, num_steps)


def test_fractional_timesteps_lie_between_noise_levels() -> None:
    scheduler: Any = EulerDiscreteScheduler(250, beta_start=1e-3, beta_end=0.02)
    schedule = Timesteps(num_steps=7, spacing="linspace", fractional=True)
    assert schedule.timesteps(250).tolist() == pytest.approx(theirs(scheduler, 7))
    ours = schedule(model(250))
    torch.testing.assert_close(ours.float(), scheduler.sigmas.float(), rtol=1e-5, atol=0)
    assert schedule.sigma_range(model(250)) == (float(ours[-2]), float(ours[0]))


def test_an_offset_fits_as_long_as_the_largest_timestep_does() -> None:
    chain: Any = DDIMScheduler(1000, timestep_spacing="leading", steps_offset=1)
    schedule = Timesteps(num_steps=600, offset=1)
    assert schedule.timesteps(1000).tolist() == theirs(chain, 600)
    last = Timesteps(num_steps=600, offset=400)
    assert float(last.timesteps(1000)[0]) == 999
    with pytest.raises(ConfigError, match="too few for num_steps 600 with offset 401"):
        Timesteps(num_steps=600, offset=401).timesteps(1000)


def test_settings_without_effect_are_refused() -> None:
    for options, message in (
        ({"num_steps": 0}, "num_steps >= 1"),
        ({"spacing": "even"}, "did you mean|known: "),
        ({"offset": -1}, "needs offset >= 0, got -1"),
        ({"spacing": "trailing", "offset": 1}, "offset has no effect with trailing"),
        ({"spacing": "trailing", "open_end": True}, "open_end has no effect"),
        ({"fractional": True}, "fractional has no effect with leading"),
    ):
        settings: Any = options
        with pytest.raises(ConfigError, match=message):
            Timesteps(**settings)
    with pytest.raises(ConfigError, match="too few for num_steps 51"):
        Timesteps(num_steps=51)(model(50))
    with pytest.raises(ConfigError, match="picks among the timesteps of a discrete model"):
        Timesteps()(EDM())
