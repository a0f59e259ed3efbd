"""Standing statistics: known averages, and nothing else moves."""

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch

from genlab.networks.biggan import BigGANGenerator
from genlab.networks.layers.gan_layers import BatchNorm
from genlab.networks.layers.standing_statistics import (
    begin_standing,
    by_batch,
    end_standing,
    keeping_moments,
    normalizations,
)


def tiny(own: bool) -> BigGANGenerator:
    return BigGANGenerator(
        img_resolution=32, num_classes=3, channels=4, dim_z=8, shared_dim=4, own_batch_norm=own
    )


@pytest.mark.parametrize("own", [False, True])
@torch.no_grad()
def test_average_of_equal_batches_is_that_batch(own: bool) -> None:
    network = tiny(own).eval()
    z, y = torch.randn(6, 8), network.embed_labels(torch.tensor([0, 1, 2, 0, 1, 2]))
    with by_batch(network):
        expected = network(z, y)
    before = copy.deepcopy(network.state_dict())
    begin_standing(network)
    with by_batch(network):
        for _ in range(3):
            network(z, y)
    torch.testing.assert_close(network(z, y), expected, rtol=0, atol=1e-5)  # sums, divided
    end_standing(network)
    torch.testing.assert_close(network(z, y), expected, rtol=0, atol=1e-5)  # averages
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.endswith(("stored_mean", "stored_var")) for name in changed)


@torch.no_grad()
def test_average_is_over_passes() -> None:
    network = tiny(own=True).eval()
    y = network.embed_labels(torch.tensor([0, 1, 2]))
    batches = torch.randn(2, 3, 8)
    first: Any = normalizations(network)[0]
    seen = []
    begin_standing(network)
    with by_batch(network):
        for z in batches:
            seen.append(network.linear(z[:, : 8 // 4]).unflatten(1, (-1, 4, 4)))
            network(z, y)
    end_standing(network)
    torch.testing.assert_close(
        first.stored_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    )
    biased = torch.stack([x.var((0, 2, 3), correction=0) for x in seen]).mean(0)
    torch.testing.assert_close(first.stored_var, biased)


@torch.no_grad()
def test_sums_of_many_passes_in_half_precision() -> None:
    norm = BatchNorm(2, eps=1e-5).to(torch.bfloat16)
    x = (torch.randn(8, 2, 4, 4) + 3).bfloat16()
    begin_standing(norm)
    for _ in range(600):
        norm(x)
    end_standing(norm.eval())
    torch.testing.assert_close(norm.stored_mean, x.float().mean((0, 2, 3)), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.stored_var, x.float().var((0, 2, 3)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_comes_back(training: bool) -> None:
    network = tiny(own=False).train(training)
    with by_batch(network):
        assert all(module.training for module in normalizations(network))
    assert all(module.training is training for module in network.modules())


def test_what_was_stored_comes_back() -> None:
    network = tiny(own=False)
    before = copy.deepcopy(network.state_dict())
    with suppress(ZeroDivisionError), keeping_moments(network):
        begin_standing(network)
        raise ZeroDivisionError
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(module.passes is None for module in normalizations(network))
