"""The noise schedules against their formulas."""

import math
from typing import Any

import pytest
import torch
from ideal_cases import RANGED, mixture

from genlab.diffusion.preconditioning import IDDPM, VP, vp_sigma
from genlab.errors import ConfigError
from genlab.samplers.base import SCHEDULES
from genlab.samplers.schedules import cosine, iddpm, karras, ve, vp


def test_karras_is_even_in_a_root_of_sigma() -> None:
    sigmas = karras.karras_sigmas(9, 0.002, 80.0, rho=7.0)
    steps = (sigmas ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(8))
    torch.testing.assert_close(sigmas[[0, -1]], torch.tensor([80.0, 0.002]).double())


def test_linear_is_karras_with_rho_one() -> None:
    torch.testing.assert_close(
        karras.linear_sigmas(7, 0.1, 5.0), karras.karras_sigmas(7, 0.1, 5.0, rho=1.0)
    )


def test_ve_is_geometric() -> None:
    steps = ve.ve_sigmas(11, 0.02, 100.0).log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(10))


def test_vp_is_even_in_time() -> None:
    """With the ends of the standard betas these are the times of Song et al.'s own sampler."""
    sigmas = SCHEDULES["vp"]()(mixture().noise_levels)[:-1]
    times = torch.linspace(1, 1e-3, len(sigmas), dtype=torch.float64)
    torch.testing.assert_close(VP().t(sigmas), times, rtol=1e-6, atol=0)


def test_vp_betas_invert_the_range() -> None:
    ends = VP().sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()
    assert vp.vp_betas(*ends) == pytest.approx((19.9, 0.1))


def test_vp_betas_of_edm_range_make_noise_grow() -> None:
    """EDM's range makes beta_min a little negative, which is allowed where no step looks."""
    beta_d, beta_min = vp.vp_betas(0.002, 80.0)
    assert beta_min < 0
    t = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    assert (vp_sigma(t, beta_d, beta_min).diff() > 0).all()


def test_cosine_is_even_in_the_angle() -> None:
    sigmas = cosine.cosine_sigmas(8, 0.01, 50.0)
    angles = torch.acos((1 / (1 + sigmas**2)).sqrt())  # alpha_bar = cos^2
    torch.testing.assert_close(angles.diff(), angles.diff()[:1].expand(7))


def test_iddpm_picks_the_models_own_levels() -> None:
    sigmas = iddpm.iddpm_sigmas(25, 0.002, 81.0)
    table = IDDPM().u.double()
    nearest = (sigmas[:, None] - table).abs().amin(1)
    assert (nearest < 1e-4 * sigmas).all()  # the model's own table is in float32
    assert sigmas[0] == pytest.approx(80.0, abs=1.0)  # what EDM calls j0 = 8
    assert sigmas[-1] == pytest.approx(IDDPM().sigma_min, rel=1e-3)


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps >= 1"),
        ({"sigma_min": 2.0, "sigma_max": 2.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_max": math.inf}, "0 < sigma_min < sigma_max"),
        ({"sigma_min": math.nan}, "0 < sigma_min < sigma_max"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    build: Any = SCHEDULES[name]
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("karras", {"rho": 0.0}, "rho > 0"),
        ("vp", {"epsilon_s": 1.0}, "epsilon_s"),
        ("iddpm", {"M": 0}, "M >= 1"),
    ],
)
def test_own_settings_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    build: Any = SCHEDULES[name]
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_ranges_without_a_schedule_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower sigma_min or raise epsilon_s"):
        vp.vp_sigmas(5, 0.5, 1.0)
    with pytest.raises(ConfigError, match="noise levels lies between"):
        iddpm.iddpm_sigmas(5, 700.0, 20000.0)
