"""The discretised mixture of logistics against what a distribution has to be."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from genlab.errors import ConfigError
from genlab.networks.layers.logistic_mixture import MIN_LOG_SCALE, LogisticMixture

GREY = LogisticMixture(channels=1, num_mixtures=4)
COLOUR = LogisticMixture(channels=3, num_mixtures=4)
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def params(distribution: LogisticMixture, batch: int, log_scale: float = -2.5) -> Tensor:
    """Random parameters whose log-scales lie about ``log_scale``."""
    values = torch.randn(batch, distribution.num_params, dtype=torch.float64)
    K = distribution.num_mixtures
    block = 3 if distribution.channels == 3 else 2
    for channel in range(distribution.channels):
        first = K * (1 + block * channel)
        values[:, first : first + K] *= 0.7
        values[:, first + K : first + 2 * K] += log_scale
    return values


@pytest.mark.parametrize("log_scale", [0.0, -2.5, -4.0, -5.0])
def test_probabilities_of_all_values_sum_to_one(log_scale: float) -> None:
    told = params(GREY, 64, log_scale)
    each = GREY.log_prob(told[:, :, None].expand(-1, -1, 256), LEVELS.expand(64, 1, 256))
    assert (each.exp().sum(1) - 1).abs().max() < 1e-5


def test_probabilities_of_colours_sum_to_one() -> None:
    # 256^3 colours are too many to sum: take one mixture component and narrow channels, and colours
    # out of the 32 levels about each of the three means, where all but 1e-6 of the mass is.
    one = LogisticMixture(channels=3, num_mixtures=1)
    told = torch.tensor([0.3, 0.1, -5.0, 0.5, 0.02, -5.2, -0.4, -0.1, -5.1, 0.7]).double()
    near = [LEVELS[(LEVELS - mean).abs() < 0.3] for mean in (0.1, 0.05, 0.0)]
    colours = torch.cartesian_prod(*near).T[None]
    each = one.log_prob(told[None, :, None].expand(1, -1, colours.shape[2]), colours)
    assert float(each.exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("distribution", [GREY, COLOUR])
def test_samples_follow_the_probabilities(distribution: LogisticMixture) -> None:
    """The likelihood of drawn pixels is, on average, the entropy: compare by two sets of them."""
    N, C = 40_000, distribution.channels
    told = params(distribution, 1).expand(N, -1)
    drawn = distribution.sample(told, torch.rand(N, distribution.num_uniforms))
    levels = ((drawn + 1) * 127.5).round()
    assert torch.equal(levels / 127.5 - 1, drawn)
    # Shares of the first channel's values in 16 bins, against their probabilities.
    first = told[0, : 3 * 4][None, :, None].expand(1, -1, 256)
    p = GREY.log_prob(first, LEVELS[None, None]).exp()[0].view(16, 16).sum(1)
    share = torch.bincount((levels[:, 0] // 16).long(), minlength=16) / N
    assert (share - p).abs().max() < 4 * math.sqrt(0.25 / N)
    assert drawn.shape == (N, C)


def test_channels_depend_on_those_before() -> None:
    told = params(COLOUR, 1)
    told[:, 4 + 8 : 4 + 12] = 3.0  # green follows red
    told[:, 4 + 4 : 4 + 8] = 0.0  # red spreads
    told[:, 16 + 4 : 16 + 8] = -6.0  # green does not
    drawn = COLOUR.sample(told.expand(500, -1), torch.rand(500, COLOUR.num_uniforms))
    red, green = drawn[:, 0], drawn[:, 1]
    inside = (green.abs() < 1) & (red.abs() < 1)
    means = told[0, 16:20]
    rest = green[inside, None] - math.tanh(3.0) * red[inside, None] - means
    assert rest.abs().min(1).values.max() < 0.1


def test_temperature() -> None:
    told = params(GREY, 8)
    cold = [GREY.sample(told, torch.rand(8, GREY.num_uniforms), temperature=0) for _ in range(2)]
    assert torch.equal(*cold)
    best = told[:, :4].argmax(1, keepdim=True)
    mean = told[:, 4:8].gather(1, best).clamp(-1, 1)
    assert (cold[0] - mean).abs().max() <= 1 / 255
    u = torch.rand(2000, GREY.num_uniforms)
    stds = [GREY.sample(told[:1].expand(2000, -1), u, t).std() for t in (0.2, 0.6, 1.0)]
    assert all(a < b for a, b in pairwise(stds))


def test_extreme_uniforms_give_pixels() -> None:
    for value in (0.0, 1 - 1e-16, 1.0):
        u = torch.full((2, COLOUR.num_uniforms), value, dtype=torch.float64)
        drawn = COLOUR.sample(params(COLOUR, 2), u)
        assert drawn.isfinite().all()
        assert drawn.abs().max() <= 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_half_precision_draws_and_tells_what_float32_does(temperature: float) -> None:
    told = params(COLOUR, 40).bfloat16()
    u = torch.linspace(0, 1 - 1e-7, 40)[:, None].expand(-1, COLOUR.num_uniforms)
    drawn = COLOUR.sample(told, u, temperature)
    assert torch.equal(drawn, COLOUR.sample(told.float(), u, temperature))
    assert torch.equal(COLOUR.log_prob(told, drawn), COLOUR.log_prob(told.float(), drawn))
    assert torch.equal(((drawn + 1) * 127.5).round() / 127.5 - 1, drawn)


def test_single_pixels_are_those_of_images() -> None:
    told = params(COLOUR, 60).reshape(5, -1, 3, 4)
    u = torch.rand(5, COLOUR.num_uniforms, 3, 4)
    whole = COLOUR.sample(told, u)
    for i in range(3):
        for j in range(4):
            assert torch.equal(COLOUR.sample(told[:, :, i, j], u[:, :, i, j]), whole[:, :, i, j])
    one = COLOUR.log_prob(told[:, :, 1, 2], whole[:, :, 1, 2])
    assert torch.allclose(one, COLOUR.log_prob(told, whole)[:, 1, 2])


def test_guidance_of_scale_one_changes_nothing() -> None:
    told, null = params(COLOUR, 2), params(COLOUR, 2)
    assert torch.allclose(COLOUR.guide(told, null, 1.0), told)
    assert torch.allclose(COLOUR.guide(told, told, 5.0), told)


def test_gradients_are_finite_at_the_edges_and_below_the_smallest_scale() -> None:
    told = params(GREY, 3, 4 * MIN_LOG_SCALE).requires_grad_()
    log_prob = GREY.log_prob(told, torch.tensor([[-1.0], [0.2], [1.0]], dtype=torch.float64))
    log_prob.sum().backward()
    assert told.grad is not None
    assert told.grad.isfinite().all()
    assert (told.grad[:, 8:] == 0).all()  # clamped log-scales


def test_two_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 or 3 channels, got 2"):
        LogisticMixture(channels=2)
