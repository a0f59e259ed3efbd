"""Drawing from the probabilities of all levels: what it is equal to, and what it leaves out."""

import math

import pytest
import torch
from torch import Tensor

from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.networks.autoregressive import PixelDistribution
from genlab.networks.layers.categorical import Categorical, from_levels
from genlab.networks.layers.logistic_mixture import LogisticMixture
from genlab.samplers.autoregressive.base import PixelSampler
from genlab.samplers.autoregressive.levels import ByLevels, nucleus

GREY, COLOUR = (LogisticMixture(channels=channels, num_mixtures=3) for channels in (1, 3))
DISTRIBUTIONS = [Categorical(16), GREY, COLOUR]
IDS = ["softmax", "grey", "colour"]


def params(distribution: PixelDistribution, count: int, seed: int = 0) -> Tensor:
    """Random parameters, the scales of a mixture around a tenth of the range."""
    numbers = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, distribution.num_params, generator=numbers, dtype=torch.float64)
    if isinstance(distribution, LogisticMixture):
        scales = distribution.components(torch.arange(distribution.num_params)[None].double())
        at = scales.log_scales[scales.log_scales > 0].long().unique()
        drawn[:, at] -= 2.3
    return drawn


def pixels(distribution: PixelDistribution, count: int) -> Tensor:
    numbers = torch.Generator().manual_seed(1)
    shape = (count, distribution.num_channels)
    levels = torch.randint(0, distribution.num_levels, shape, generator=numbers)
    return from_levels(levels, distribution.num_levels).double()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=IDS)
def test_levels_are_the_distribution_itself(distribution: PixelDistribution) -> None:
    """Their probabilities are those of whole pixels, channel after channel, and sum to 1."""
    said, drawn = params(distribution, 50), pixels(distribution, 50)
    by_levels = ByLevels(inner=distribution)
    for channel in range(distribution.num_channels):
        each = distribution.level_log_probs(said, channel, drawn[:, :channel])
        assert each.shape == (50, distribution.num_levels)
        assert torch.allclose(each.exp().sum(1), torch.ones(50).double(), atol=1e-4)
    # The bins of a mixture sum to 1 up to the approximation of the smallest ones.
    exact = distribution.log_prob(said, drawn)
    assert torch.allclose(by_levels.log_prob(said, drawn), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=IDS)
def test_guidance_is_the_product_of_powers(distribution: PixelDistribution) -> None:
    given, null = params(distribution, 20), params(distribution, 20, seed=3)
    guided = ByLevels(inner=distribution, scale=2.5)
    before = pixels(distribution, 20)[:, : distribution.num_channels - 1]
    channel = distribution.num_channels - 1
    p, q = (distribution.level_log_probs(each, channel, before) for each in (given, null))
    expected = p.exp() ** 2.5 * q.exp() ** -1.5
    expected = expected / expected.sum(1, keepdim=True)
    pair = guided.guide(given, null, 2.5)
    assert guided.num_params == pair.shape[1] == 2 * distribution.num_params
    assert torch.allclose(guided.level_log_probs(pair, channel, before).exp(), expected, atol=1e-9)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=IDS)
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["a pixel", "an image"])
def test_draws_follow_the_levels(distribution: PixelDistribution, shape: tuple[int, ...]) -> None:
    """The mean of many draws of the first channel is that of its probabilities."""
    count = 2000
    said = params(distribution, 1).reshape(1, -1, *[1] * len(shape)).expand(-1, -1, *shape)
    uniforms = torch.rand(count, distribution.num_uniforms, *shape, dtype=torch.float64)
    drawn = ByLevels(inner=distribution).sample(said.expand(count, *said.shape[1:]), uniforms)
    assert drawn.shape == (count, distribution.num_channels, *shape)
    levels = from_levels(torch.arange(distribution.num_levels), distribution.num_levels).double()
    p = distribution.level_log_probs(params(distribution, 1), 0, drawn[:1, :0].reshape(1, 0)).exp()
    mean = float((p * levels).sum())
    std = math.sqrt(float((p * levels**2).sum()) - mean**2)
    error = (drawn[:, 0].mean(0) - mean).abs().max() / (std / math.sqrt(count))
    assert error < 4.5


def test_top_p_leaves_the_fewest_levels() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    assert nucleus(logits, 0.7).isfinite().tolist() == [[False, True, True, False]]
    assert nucleus(logits, 0.71).isfinite().tolist() == [[False, True, True, True]]
    assert nucleus(logits, 1e-9).isfinite().tolist() == [[False, True, False, False]]
    assert nucleus(logits, 1) is logits
    even = torch.zeros(1, 4)
    assert nucleus(even, 0.5).isfinite().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=IDS)
def test_top_p_draws_likely_levels_only(distribution: PixelDistribution) -> None:
    said = params(distribution, 1).expand(2000, -1)
    uniforms = torch.rand(2000, distribution.num_uniforms, dtype=torch.float64)
    drawn = ByLevels(inner=distribution, top_p=0.5).sample(said, uniforms)
    log_probs = distribution.level_log_probs(said[:1], 0, drawn[:1, :0])
    levels = ((drawn[:, 0] + 1) * (distribution.num_levels - 1) / 2).round().long().unique()
    mass = log_probs.exp()[0, levels].sum()
    assert 0.5 <= mass <= 0.5 + log_probs.exp().max()
    assert log_probs[0, levels].min() >= log_probs[0].exp().sort().values.log()[-len(levels)] - 1e-9


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=IDS)
def test_temperature(distribution: PixelDistribution) -> None:
    """0 takes the likeliest level, and a low one nearly always does."""
    said = params(distribution, 200)
    uniforms = torch.rand(200, distribution.num_uniforms, dtype=torch.float64)
    coldest = ByLevels(inner=distribution).sample(said, uniforms, temperature=0)
    first = distribution.level_log_probs(said, 0, coldest[:, :0]).argmax(1)
    assert torch.allclose(coldest[:, 0].float(), from_levels(first, distribution.num_levels))
    cold = ByLevels(inner=distribution).sample(said, uniforms, temperature=1e-4)
    assert (cold == coldest).double().mean() > 0.9


def test_half_precision_is_widened() -> None:
    said = params(COLOUR, 8).bfloat16()
    uniforms = NoiseStream(range(8)).rand((COLOUR.num_uniforms,))
    drawn = ByLevels(inner=COLOUR, top_p=0.9).sample(said, uniforms)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, ByLevels(inner=COLOUR, top_p=0.9).sample(said.float(), uniforms))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"top_p": 0.0}, "top_p must lie above 0"),
        ({"top_p": 1.5}, "at most 1, got 1.5"),
        ({"guidance_space": "level"}, "no 'level'; did you mean 'levels'"),
    ],
)
def test_nonsense_is_refused(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PixelSampler.from_layers([("a test", setting)])
