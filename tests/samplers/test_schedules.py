"""The noise schedules against their formulas."""

import math
from typing import Any

import pytest
import torch
from ideal_cases import RANGED, mixture

from genlab.diffusion.discrete import Discrete
from genlab.diffusion.flow import Flow, path_of
from genlab.diffusion.preconditioning import IDDPM, VP, vp_sigma
from genlab.errors import ConfigError
from genlab.samplers.base import SCHEDULES
from genlab.samplers.schedules import cosine, exponential, iddpm, karras, ve, vp
from genlab.samplers.schedules.flow_times import FlowTimes


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
        ("vp", {"beta_d": 0.0}, "beta_d > 0"),
        ("vp", {"sigma_min": 0.1, "sigma_max": 9.0, "beta_min": 0.3}, "no effect"),
        ("polyexponential", {"rho": 0.0}, "rho > 0"),
        ("flow", {"shift": 0.0}, "shift > 0"),
        ("flow", {"dimension": 0}, "C H W"),
        ("flow", {"shift": 2.0, "dimension": 4096}, "not both"),
        ("levels", {"sigmas": [2.0, 1.0, 0.0]}, "without the final 0"),
        ("levels", {"sigmas": [2.0, 2.0, 1.0]}, "twice in a row"),
        ("levels", {"sigmas": [2.0, 1.0], "num_steps": 3}, "cannot take 3 steps"),
        ("timesteps", {"in_log": True}, "no effect without fractional"),
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


def test_exponential_is_even_in_ln_sigma_and_lu_s() -> None:
    sigmas = SCHEDULES["exponential"](num_steps=9)(mixture().noise_levels)  # type: ignore[call-arg]
    steps = sigmas[:-1].log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(8))
    assert SCHEDULES["lu"] is SCHEDULES["exponential"]
    torch.testing.assert_close(sigmas[:-1], ve.ve_sigmas(9, 0.002, 80.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, about diffusers
def test_lu_s_levels_are_those_of_diffusers() -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler: Any = DPMSolverMultistepScheduler(
        use_lu_lambdas=True, final_sigmas_type="zero", lower_order_final=True
    )
    scheduler.set_timesteps(10)
    theirs = scheduler.sigmas.double()
    ours = SCHEDULES.build(
        "lu", num_steps=10, sigma_min=float(theirs[-2]), sigma_max=float(theirs[0])
    )
    torch.testing.assert_close(ours(mixture().noise_levels), theirs, rtol=1e-5, atol=0)


def test_polyexponential_bends_it() -> None:
    even = exponential.polyexponential_sigmas(9, 0.01, 50.0)
    for rho, lower in ((2.0, True), (0.5, False)):
        bent = exponential.polyexponential_sigmas(9, 0.01, 50.0, rho)
        torch.testing.assert_close(bent[[0, -1]], even[[0, -1]])
        assert ((bent[1:-1] < even[1:-1]) == lower).all()


def test_vp_with_betas_is_even_in_their_time() -> None:
    options = {"num_steps": 6, "beta_d": 15.0, "beta_min": 0.2, "epsilon_s": 1e-4}
    sigmas = SCHEDULES.build("vp", **options)(mixture().noise_levels)[:-1]
    t = torch.linspace(1, 1e-4, 6, dtype=torch.float64)
    torch.testing.assert_close(sigmas, vp_sigma(t, 15.0, 0.2))


def test_shift_multiplies_the_levels_of_straight_lines() -> None:
    plain, shifted = (FlowTimes(num_steps=8, shift=shift)(Flow()) for shift in (None, 3.0))
    torch.testing.assert_close(shifted[1:], 3 * plain[1:])
    assert shifted[0] == plain[0]  # pure noise stays pure noise


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_shift_bends_the_time_that_is_left(path: str) -> None:
    def left(shift: float) -> torch.Tensor:
        levels = FlowTimes(num_steps=7, path=path, shift=shift)(Flow(path=path))[1:-1]
        return 1 - path_of(path).t(levels)

    u = left(1.0)
    torch.testing.assert_close(left(2.5), 2.5 * u / (1 + 1.5 * u), rtol=1e-6, atol=1e-9)


def test_dimension_makes_the_shift() -> None:
    by_dimension = FlowTimes(num_steps=5, dimension=4 * 4096)(Flow())
    assert torch.equal(by_dimension, FlowTimes(num_steps=5, shift=2.0)(Flow()))
    assert torch.equal(FlowTimes(dimension=4096)(Flow()), FlowTimes()(Flow()))


def test_listed_levels_are_visited() -> None:
    schedule = SCHEDULES.build("levels", sigmas=[9.0, 1.0, 3.0, 0.5])
    levels = mixture().noise_levels
    assert schedule(levels).tolist() == [9.0, 1.0, 3.0, 0.5, 0.0]
    assert schedule.sigma_range(levels) == (0.5, 9.0)


def test_listed_levels_must_be_there_and_known() -> None:
    with pytest.raises(ConfigError, match="genlab schedule MODEL"):
        SCHEDULES.build("levels")(Discrete())
    with pytest.raises(ConfigError, match="make a list for this model"):
        SCHEDULES.build("levels", sigmas=[500.0, 1.0])(Discrete())
    top = Discrete().sigma_max
    listed = SCHEDULES.build("levels", sigmas=[float(f"{top:.6g}"), 1.0])
    assert listed(Discrete())[0] <= top


def test_timesteps_lie_between_in_sigma_or_in_its_logarithm() -> None:
    model = Discrete()
    common: Any = {"num_steps": 5, "spacing": "linspace", "fractional": True}
    even, logarithmic = (
        SCHEDULES.build("timesteps", **common, in_log=in_log)(model)[2] for in_log in (False, True)
    )
    low, high = model.levels[499], model.levels[500]  # timestep 499.5
    torch.testing.assert_close(even, (low + high) / 2)
    torch.testing.assert_close(logarithmic, (low * high).sqrt())
