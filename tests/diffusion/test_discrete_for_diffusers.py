"""What diffusers' schedulers add to discrete models: pure noise, timesteps in ln sigma."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, KDPM2DiscreteScheduler

from genlab.diffusion.discrete import Discrete
from genlab.errors import ConfigError

# diffusers' own use of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array.*__ :DeprecationWarning")


def test_zero_terminal_snr() -> None:
    scheduler: Any = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = Discrete(prediction="v", zero_terminal_snr=True)
    alpha_bar = 1 / (1 + ours.levels**2)
    torch.testing.assert_close(alpha_bar.float(), scheduler.alphas_cumprod, rtol=2e-4, atol=1e-7)
    assert ours.sigma_max == 2.0**24
    # From pure noise, v is -x0, whatever the noise was.
    c = ours.coefficients(torch.tensor(ours.sigma_max))
    assert float(c.c_out) == pytest.approx(-1)
    assert float(c.c_skip) * ours.sigma_max < 1e-7
    with pytest.raises(ConfigError, match="needs prediction v or x0"):
        Discrete(zero_terminal_snr=True)


def test_nearest_timestep_in_log() -> None:
    scheduler: Any = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(30)
    ours = Discrete(interpolate=True, nearest_in_log=True)
    sigmas = scheduler.sigmas[:-1].double()
    assert ours.timestep(sigmas).tolist() == scheduler.timesteps.tolist()
    assert torch.equal(ours.round_sigma(sigmas), sigmas.clamp(ours.sigma_min, ours.sigma_max))
    with pytest.raises(ConfigError, match="has no effect without interpolate"):
        Discrete(nearest_in_log=True)


def test_timesteps_between_two_in_log() -> None:
    ours = Discrete(interpolate=True, interpolate_in_log=True)
    t = torch.tensor([0.0, 0.4, 10.5, 998.9, 999.0], dtype=torch.float64)
    sigmas = ours.sigma(t)
    assert float(sigmas[2]) == pytest.approx(float((ours.levels[10] * ours.levels[11]).sqrt()))
    torch.testing.assert_close(ours.timestep(sigmas), t, rtol=1e-9, atol=1e-9)
    even = Discrete(interpolate=True)
    torch.testing.assert_close(even.timestep(even.sigma(t)), t, rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigError, match="has no effect without interpolate"):
        Discrete(interpolate_in_log=True)
    with pytest.raises(ConfigError, match="no effect with nearest_in_log"):
        Discrete(interpolate=True, interpolate_in_log=True, nearest_in_log=True)


def test_timesteps_between_in_log() -> None:
    """Where a second evaluation in the middle of a step asks."""
    scheduler: Any = KDPM2DiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(30)
    middles = scheduler.sigmas_interpol[1:-3:2].double()
    told = scheduler.timesteps[1::2].double()
    ours = Discrete(interpolate=True, interpolate_in_log=True)
    torch.testing.assert_close(ours.timestep(middles), told, rtol=1e-4, atol=1e-3)
    straight = Discrete(interpolate=True)
    assert (straight.timestep(middles) - told).abs().max() > 1e-2
    with pytest.raises(ConfigError, match="interpolate_in_log has no effect without interpolate"):
        Discrete(interpolate_in_log=True)
