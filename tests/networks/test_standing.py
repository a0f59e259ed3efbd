"""Standing statistics: known averages, and nothing else moves."""

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch

from genlab.networks.biggan import BigGANGenerator
from genlab.networks.standing import (
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


def test_what_was_stored_comes_back() -> None:
    network = tiny(own=False)
    before = copy.deepcopy(network.state_dict())
    with suppress(ZeroDivisionError), keeping_moments(network):
        begin_standing(network)
        raise ZeroDivisionError
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(module.passes is None for module in normalizations(network))
