"""Discrete models: betas, respacing, chains and what the network is told."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from genlab.diffusion.discrete import Chain, Discrete, chain_over, respaced_timesteps
from genlab.diffusion.preconditioning import from_config
from genlab.errors import ConfigError


@pytest.mark.parametrize(
    ("schedule", "options", "theirs"),
    [
        ("linear", {}, {"beta_schedule": "linear"}),
        ("linear", {"beta_start": 0.001, "beta_end": 0.03}, {"beta_schedule": "linear"}),
        ("cosine", {}, {"beta_schedule": "squaredcos_cap_v2"}),
        ("scaled_linear", {}, {"beta_schedule": "scaled_linear"}),
    ],
)
def test_tables_are_those_of_diffusers(
    schedule: str, options: dict[str, Any], theirs: dict[str, Any]
) -> None:
    ends = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(schedule, options)
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000, **theirs, **ends)
    chain = chain_over(Discrete(schedule=schedule, **options).levels)
    expected = scheduler.alphas_cumprod.double()  # theirs is float32
    torch.testing.assert_close(chain.alphas_cumprod, expected, rtol=2e-4, atol=0)
    torch.testing.assert_close(chain.betas, scheduler.betas.double(), rtol=2e-4, atol=0)


@pytest.mark.parametrize("count", [1, 4, 10, 25, 100])
def test_ddim_spacing_is_a_stride(count: int) -> None:
    kept = respaced_timesteps(1000, f"ddim{count}")
    assert kept == list(range(0, 1000, 1000 // count))
    assert kept == sorted(_stepped(DDIMScheduler(num_train_timesteps=1000), count))


def _stepped(scheduler: Any, count: int) -> list[int]:
    scheduler.set_timesteps(count)
    return [int(t) for t in scheduler.timesteps]


@pytest.mark.parametrize(
    ("T", "steps", "expected"),
    [
        (1000, 25, [0, 42, 83]),
        (1000, "1", [0]),
        (10, "", list(range(10))),
        (10, 10, list(range(10))),
        (10, "1,1", [0, 5]),
        (10, "2, 1, 1", [0, 3, 4, 7]),  # the remainder goes to the first section: 4, 3, 3
        (6, 3, [0, 2, 5]),  # 2.5 rounds to the even number
    ],
)
def test_respacing(T: int, steps: int | str, expected: list[int]) -> None:
    kept = respaced_timesteps(T, steps)
    assert kept[: len(expected)] == expected
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (11, "11 of a section of 10"),
        ("1,6", "6 of a section of 5"),
        ("ddim7", "no whole stride picks exactly 7 of 10"),
        ("ddim", "must be a number"),
        (0, "must be a number"),
        ("3,,2", "must be a number"),
        ("half", "must be a number"),
    ],
)
def test_impossible_respacing_is_refused(steps: int | str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        respaced_timesteps(10, steps)


@pytest.mark.parametrize("T", [1, 10, 20])
def test_linear_betas_need_many_steps(T: int) -> None:
    """DDPM's betas grow as 1000 / T and reach 1 at T = 20."""
    with pytest.raises(ConfigError, match="take T > 20"):
        Discrete(T=T)
    assert chain_over(Discrete(T=21).levels).betas.max() < 1
    assert len(Discrete(T=T, schedule="cosine").levels) == T


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"prediction": "eps"}, "no prediction 'eps'"),
        ({"variance": "learnt"}, "did you mean 'learned'"),
        ({"T": 0}, "T >= 1"),
        ({"beta_end": 1.5}, "between 0 and 1"),
        ({"schedule": "cosine", "beta_end": 0.5}, "has no beta_start"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Discrete(**options)


def test_config_comes_back() -> None:
    model = Discrete(schedule="scaled_linear", beta_end=0.02, prediction="v", interpolate=True)
    assert from_config(model.to_config()) == model
    assert "beta_start" not in model.to_config()


def test_shortened_chain_keeps_its_noise_levels() -> None:
    """A chain over some levels ends with the same alpha_bar as the whole one: Eq. 19 of iDDPM."""
    model = Discrete(T=100)
    short = chain_over(model.levels, "4,3,5")
    kept = respaced_timesteps(100, "4,3,5")
    assert len(short) == 12
    torch.testing.assert_close(short.alphas_cumprod, chain_over(model.levels).alphas_cumprod[kept])
    torch.testing.assert_close((1 - short.betas).cumprod(0), short.alphas_cumprod)
    skipped = torch.tensor(kept).diff() > 1
    assert torch.equal(short.betas[1:] > chain_over(model.levels).betas[kept][1:] + 1e-12, skipped)


def test_posterior_is_that_of_two_gaussians() -> None:
    """``q(x_next | x, x0)`` by Bayes, from ``q(x | x_next) q(x_next | x0)``."""
    chain = chain_over(Discrete(T=50).levels)
    alpha_bar = torch.cat([torch.ones(1).double(), chain.alphas_cumprod[:-1]])
    beta, prior = chain.betas[1:], 1 - alpha_bar[1:]
    precision = (1 - beta) / beta + 1 / prior
    torch.testing.assert_close(chain.posterior_variance[1:], 1 / precision)
    coef1 = alpha_bar[1:].sqrt() / prior / precision
    coef2 = (1 - beta).sqrt() / beta / precision
    torch.testing.assert_close(chain.posterior_mean_coef1[1:], coef1)
    torch.testing.assert_close(chain.posterior_mean_coef2[1:], coef2)
    assert float(chain.posterior_mean_coef1[0]) == 1
    assert float(chain.posterior_mean_coef2[0]) == 0


def test_learned_range_runs_between_the_fixed_variances() -> None:
    chain = chain_over(Discrete(T=50).levels, "10")
    ones = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    for step in range(10):
        low, high = (chain.log_variance(step, "learned_range", v * ones) for v in (-1.0, 1.0))
        torch.testing.assert_close(low[0, 0, 0, 0], chain.log_variance(step, "fixed_small"))
        if step:  # step 0 has beta here and the posterior's variance of step 1 there
            torch.testing.assert_close(high[0, 0, 0, 0], chain.log_variance(step, "fixed_large"))
    beyond = chain.log_variance(3, "learned_range", 3 * ones)  # not clamped
    assert float(beyond[0, 0, 0, 0]) > float(chain.betas[3].log())
    index = torch.tensor([0, 7])
    each = chain.log_variance(index, "learned_range", torch.zeros(2, 1, 2, 2))
    assert each.dtype == torch.float32
    assert float(each[1, 0, 0, 0]) == pytest.approx(
        float(chain.log_variance(7, "learned_range", 0 * ones)[0, 0, 0, 0])
    )


def test_predicted_variance_that_is_missing_is_told() -> None:
    with pytest.raises(ConfigError, match="a guidance around it has lost it"):
        chain_over(Discrete(T=50).levels).log_variance(3, "learned_range")


def test_chain_of_one_step_has_a_variance() -> None:
    chain = Chain(torch.tensor([3.0]).double())
    assert float(chain.log_variance(0, "fixed_small").exp()) == pytest.approx(0.9)
    assert float(chain.posterior_variance) == 0


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_every_prediction_recovers_the_image(prediction: str) -> None:
    model = Discrete(prediction=prediction)
    sigma = model.levels
    x0, n = 0.3, -1.7
    a, b = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    outputs: dict[str, Any] = {"epsilon": n, "x0": x0, "v": a * n - b * x0}
    output = outputs[prediction]
    c = model.coefficients(sigma)
    estimate = c.c_skip * (x0 + sigma * n) + c.c_out * output
    torch.testing.assert_close(estimate, torch.full_like(sigma, x0))


def test_network_is_told_timesteps() -> None:
    model = Discrete(T=400)
    t = torch.arange(400).double()
    assert torch.equal(model.coefficients(model.levels).c_noise, t)
    assert torch.equal(model.timestep(model.levels.float()), t.float())
    rescaled = Discrete(T=400, rescale_timesteps=True)
    assert torch.equal(rescaled.coefficients(model.levels).c_noise, t * 2.5)


def test_interpolating_model_is_told_fractions() -> None:
    model = Discrete(interpolate=True)
    between = 0.75 * model.levels[10:12][:1] + 0.25 * model.levels[11:12]
    assert float(model.coefficients(between).c_noise) == pytest.approx(10.25)
    assert torch.equal(model.round_sigma(between), between)
    assert float(model.round_sigma(torch.tensor(1e6))) == pytest.approx(model.sigma_max)
    assert float(Discrete().coefficients(between).c_noise) == 10
