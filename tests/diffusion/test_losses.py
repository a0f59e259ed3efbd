"""The denoising losses: draws, noise levels, weights."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.losses import LOSSES, EDMLoss, LossDraws, WeightedLoss
from genlab.diffusion.preconditioning import EDM, VE, VP
from genlab.errors import ConfigError

NAMES = [name for name in LOSSES if issubclass(LOSSES[name], WeightedLoss)]
IMAGES = torch.linspace(-1, 1, 6 * 2 * 4 * 4).reshape(6, 2, 4, 4)
LEVELS = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)


def gaussian(std: float) -> GaussianMixtureDenoiser:
    """The ideal denoiser of pixels around 0."""
    return GaussianMixtureDenoiser(torch.ones(1), torch.zeros(1, 2, 4, 4), torch.full((1,), std))


@pytest.mark.parametrize("name", NAMES)
def test_draws_repeat_and_come_in_order(name: str) -> None:
    """First every sample's level, then the noise: as officially, so that runs can be repeated."""
    loss = LOSSES.build(name)
    draws = loss.draw(IMAGES, torch.Generator().manual_seed(5))
    again = torch.Generator().manual_seed(5)
    pick = torch.randn if name == "edm" else torch.rand
    assert torch.equal(draws.level, pick(6, generator=again))
    assert torch.equal(draws.noise, torch.randn(IMAGES.shape, generator=again))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "flow"])
def test_loss_is_weighted_error_of_each_element(name: str) -> None:
    loss = LOSSES.build(name)
    draws = loss.draw(IMAGES, torch.Generator().manual_seed(5))
    terms = loss(gaussian(0.5), IMAGES, Condition(), draws)
    assert terms.loss.shape == IMAGES.shape
    assert terms.sigma.shape == (6,)
    for i, sigma in enumerate(terms.sigma):
        noisy = IMAGES[i] + sigma * draws.noise[i]
        x0 = noisy * 0.25 / (0.25 + sigma**2)
        expected = loss.weight(terms.sigma)[i] * (x0 - IMAGES[i]) ** 2
        torch.testing.assert_close(terms.loss[i], expected, check_dtype=False)


def test_edm_levels_are_log_normal() -> None:
    sigma = EDMLoss(P_mean=-0.5, P_std=0.8).sigma(torch.tensor([-1.0, 0.0, 2.0]))
    torch.testing.assert_close(sigma.log(), torch.tensor([-1.3, -0.5, 1.1]))


def test_edm_weight_is_inverse_square_of_c_out() -> None:
    """So every noise level starts training with a loss of the same size."""
    sigma = torch.logspace(-2, 2, 9)
    c_out = EDM(sigma_data=0.6).coefficients(sigma).c_out
    torch.testing.assert_close(EDMLoss(sigma_data=0.6).weight(sigma), c_out**-2)


def test_vp_and_ve_levels_cover_their_models() -> None:
    for loss, model in ((LOSSES.build("vp"), VP()), (LOSSES.build("ve"), VE())):
        sigma: Tensor = loss.sigma(LEVELS)
        torch.testing.assert_close(loss.weight(sigma), sigma**-2)
        # Uniform draws are uniform in the model's own time; VP draws it downwards from 1.
        time = model.time(sigma)
        expected = 1 - LEVELS if isinstance(model, VP) else LEVELS
        torch.testing.assert_close(time, expected, rtol=0, atol=1e-4)


def test_right_sigma_data_makes_a_gaussians_loss_flat() -> None:
    """For the ideal denoiser of pixels with EDM's sigma_data the expected loss is 1 at every level:
    error variance s^2 sd^2 / (s^2 + sd^2) times the weight."""
    numbers = torch.Generator().manual_seed(0)
    images = 0.5 * torch.randn(4000, 2, 4, 4, generator=numbers)
    noise = torch.randn(images.shape, generator=numbers)
    for level in (-2.0, 0.0, 2.0):
        draws = LossDraws(level=torch.full((4000,), level), noise=noise)
        mean = EDMLoss()(gaussian(0.5), images, Condition(), draws).loss.mean()
        assert mean == pytest.approx(1, abs=0.02)  # 128000 squares: five standard errors


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("edm", {"P_std": 0.0}),
        ("edm", {"sigma_data": -0.5}),
        ("vp", {"beta_d": 0.0}),
        ("vp", {"beta_min": math.nan}),
        ("vp", {"epsilon_t": 0.0}),
        ("ve", {"sigma_min": 0.0}),
        ("ve", {"sigma_min": 2.0, "sigma_max": 1.0}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a denoising loss needs"):
        LOSSES.build(name, **options)


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="the loss 'edm': there is no setting 'P_men'; did you mean 'P_mean'"
    ):
        LOSSES.build("edm", P_men=1.0)
