"""The four preconditionings: formulas, inverse functions, noise levels, and their configs."""

import json
import math
from typing import Any

import pytest
import torch

from genlab.diffusion.preconditioning import (
    EDM,
    IDDPM,
    PRECONDITIONINGS,
    VE,
    VP,
    Preconditioning,
    from_config,
)
from genlab.errors import ConfigError, UnknownNameError

LEVELS = torch.logspace(-2.5, 2, 40, dtype=torch.float64)


def built(name: str) -> Preconditioning:
    return PRECONDITIONINGS[name]()


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_time_runs_from_data_to_noise(name: str) -> None:
    model = built(name)
    sigmas = torch.cat([torch.zeros(1), LEVELS, torch.tensor([1e5])]).double()
    time = model.time(sigmas)
    assert time.dtype == torch.float64
    assert (time.diff() >= 0).all()
    assert time[0] == 0
    assert time[-1] == pytest.approx(1, abs=1e-4)
    inner = time[(sigmas > 0.1) & (sigmas < 50)]  # well inside every model's range
    assert (inner.diff() > 0).all()
    assert inner.min() > 0
    assert inner.max() < 1


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_time_is_one_at_the_models_largest_noise(name: str) -> None:
    model = built(name)
    sigma_max = min(model.sigma_max, 80.0) if name == "edm" else model.sigma_max
    assert float(model.time(torch.tensor(sigma_max))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_scalings_give_unit_variance_inputs(name: str) -> None:
    """c_in^2 (data variance + sigma^2) = 1; VE leaves its inputs alone, flows mix them linearly."""
    c = built(name).coefficients(LEVELS)
    variance = {"edm": 0.25, "vp": 1.0, "iddpm": 1.0, "discrete": 1.0}.get(name)
    expected = torch.ones_like(LEVELS) if variance is None else (variance + LEVELS**2) ** -0.5
    if name == "flow":
        expected = 1 / (1 + LEVELS)
    torch.testing.assert_close(c.c_in, expected)
    for value in (c.c_skip, c.c_out, c.c_in, c.c_noise):
        assert value.shape == LEVELS.shape
        assert value.dtype == LEVELS.dtype


@pytest.mark.parametrize("name", ["vp", "iddpm", "discrete"])
def test_epsilon_models_recover_data_from_noise(name: str) -> None:
    """With the true noise as the network's output, the estimate is the clean image."""
    c = built(name).coefficients(LEVELS)
    x0, n = 0.3, -1.7
    torch.testing.assert_close(
        c.c_skip * (x0 + LEVELS * n) + c.c_out * n, torch.full_like(LEVELS, x0)
    )


def test_edm_targets_have_unit_variance() -> None:
    """The network's target (y - c_skip (y + sigma n)) / c_out, EDM's requirement for Eq. 8."""
    c = EDM(sigma_data=0.7).coefficients(LEVELS)
    variance = ((1 - c.c_skip) ** 2 * 0.7**2 + c.c_skip**2 * LEVELS**2) / c.c_out**2
    torch.testing.assert_close(variance, torch.ones_like(LEVELS))
    torch.testing.assert_close(c.c_noise.exp() ** 4, LEVELS)


def test_vp_time_and_noise_invert_each_other() -> None:
    model = VP(beta_d=12.0, beta_min=0.3)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(model.t(model.sigma(t)), t, rtol=1e-9, atol=0)
    torch.testing.assert_close(model.sigma(model.t(LEVELS)), LEVELS, rtol=1e-9, atol=0)


def test_vp_is_as_coarse_as_the_official_float32() -> None:
    model = VP()
    assert model.sigma_min == 0.0009765625  # the exact value is 0.0010005
    assert model.sigma_max == pytest.approx(152.16698)
    assert model.sigma(torch.tensor([1e-5]).double()).item() == pytest.approx(0.0010005, rel=1e-5)


def test_iddpm_knows_its_levels_only() -> None:
    model = IDDPM(M=50)
    assert len(model.u) == 51
    assert (model.u.diff() < 0).all()
    assert model.u[-1] == 0
    assert (model.sigma_min, model.sigma_max) == (float(model.u[49]), float(model.u[0]))
    assert torch.equal(model.round_sigma(model.u), model.u)
    middle = (model.u[:-1] + model.u[1:]) / 2
    above, below = model.round_sigma(1.001 * middle), model.round_sigma(0.999 * middle)
    assert torch.equal(above, model.u[:-1])
    assert torch.equal(below, model.u[1:])
    # Tiny noise is nearest to sigma = 0, whose index M makes c_noise -1, as officially.
    tiny = torch.tensor([0.1 * model.sigma_min])
    assert model.coefficients(tiny).c_noise.item() == -1


@pytest.mark.parametrize("name", PRECONDITIONINGS)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_keeps_dtype_and_shape(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    sigma = torch.full(shape, 3.21, dtype=dtype)
    rounded = built(name).round_sigma(sigma)
    assert (rounded.shape, rounded.dtype) == (sigma.shape, sigma.dtype)
    assert torch.equal(built(name).round_sigma(rounded), rounded)
    assert torch.equal(rounded, sigma) == (name not in {"iddpm", "discrete"})


@pytest.mark.parametrize(
    "model",
    [EDM(), EDM(sigma_data=0.4, sigma_max=90.0), VP(M=500), VE(sigma_max=50.0), IDDPM(C_2=0.01)],
    ids=str,
)
def test_config_round_trip(model: Preconditioning) -> None:
    """Through strict JSON, which knows no infinity."""
    text = json.dumps(model.to_config(), allow_nan=False)
    assert from_config(json.loads(text)) == model


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "a preconditioning needs a name, one of discrete, edm, flow, iddpm, ve, vp"),
        ({"name": "edm", "sigma_dat": 0.5}, "did you mean 'sigma_data'"),
        ({"name": "edm", "sigma_data": 0.0}, "sigma_data must be > 0"),
        ({"name": "edm", "sigma_data": "half"}, "sigma_data takes a number, not 'half'"),
        ({"name": "edm", "sigma_min": 5.0, "sigma_max": 2.0}, "0 <= sigma_min < sigma_max"),
        ({"name": "vp", "beta_d": -1.0}, "beta_d must be > 0"),
        ({"name": "vp", "epsilon_t": 1.0}, "epsilon_t must lie between 0 and 1"),
        ({"name": "vp", "beta_min": math.nan}, "beta_min must be > 0"),
        ({"name": "ve", "sigma_min": 0.0}, "sigma_min must be > 0"),
        ({"name": "iddpm", "M": 0}, "M must be >= 1"),
        ({"name": "iddpm", "M": 1.5}, "M takes a whole number, not 1.5"),
    ],
    ids=str,
)
def test_wrong_config_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_config(config)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no preconditioning 'edn'; did you mean 'edm'"):
        from_config({"name": "edn"})
