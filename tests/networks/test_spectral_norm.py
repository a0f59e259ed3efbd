"""Spectral normalisation: exact singular values, what training moves, and weights that are kept."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from genlab import compute
from genlab.networks.layers.spectral_norm import (
    PairedConv2d,
    PairedLinear,
    SpectralConv2d,
    SpectralEmbedding,
    SpectralLinear,
    SpectralNorm,
    fold,
)

CALLS = 400
"""Training calls after which power iteration has converged on these small matrices."""

Make = Callable[[], SpectralNorm]
LAYERS: dict[str, tuple[Make, Tensor]] = {
    "power conv": (lambda: SpectralConv2d(3, 5, 3), torch.ones(2, 3, 4, 4)),
    "power linear": (lambda: SpectralLinear(4, 6), torch.ones(2, 4)),
    "power table": (lambda: SpectralEmbedding(7, 4), torch.tensor([1, 2])),
    "two values": (lambda: SpectralLinear(4, 6, num_svs=2), torch.ones(2, 4)),
    "two rounds": (lambda: SpectralLinear(4, 6, num_itrs=2), torch.ones(2, 4)),
    "pair conv": (lambda: PairedConv2d(3, 5, 3), torch.ones(2, 3, 4, 4)),
    "pair linear": (lambda: PairedLinear(4, 6), torch.ones(2, 4)),
}


@pytest.fixture(params=LAYERS, name="case")
def layer_and_input(request: pytest.FixtureRequest) -> tuple[SpectralNorm, Tensor]:
    make, x = LAYERS[request.param]
    return make(), x


def singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().flatten(1))


def test_converges_to_the_largest_singular_value(case: tuple[SpectralNorm, Tensor]) -> None:
    layer, x = case
    for _ in range(CALLS):
        layer(x)
    layer.eval()
    largest = singular_values(layer.weight)[0]
    torch.testing.assert_close(layer.normalized_weight(), layer.weight / largest)


def test_further_singular_values_are_tracked() -> None:
    layer = SpectralLinear(4, 6, num_svs=3)
    for _ in range(CALLS):
        layer(torch.ones(1, 4))
    state = layer.state_dict()
    tracked = torch.cat([state[f"sv{i}"] for i in range(3)])
    torch.testing.assert_close(tracked, singular_values(layer.weight)[:3], rtol=1e-4, atol=0)


def test_only_training_moves_the_vectors(case: tuple[SpectralNorm, Tensor]) -> None:
    layer, x = case
    before = copy.deepcopy(layer.state_dict())
    layer.eval()(x)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    layer.train()(x)
    moved = {k for k, v in layer.state_dict().items() if not torch.equal(v, before[k])}
    assert moved >= set(before) - {"weight", "bias"} - {"sv0"}
    assert not moved & {"weight", "bias"}


def test_gradient_flows_through_sigma_by_the_weight(case: tuple[SpectralNorm, Tensor]) -> None:
    """W / sigma does not change with the length of W, so its gradient has no part along W."""
    layer, _ = case
    target = torch.randn_like(layer.weight)
    (layer.normalized_weight() * target).sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    assert gradient.norm() > 0.1
    assert abs(float((gradient * layer.weight.detach()).sum())) < 1e-5 * float(gradient.norm())


@torch.no_grad()
def test_folded_is_equal_bit_for_bit(case: tuple[SpectralNorm, Tensor]) -> None:
    layer, x = case
    before = layer.eval()(x)
    names = set(layer.state_dict())
    fold(layer)
    assert layer.folded is not None
    assert torch.equal(layer(x), before)
    assert set(layer.state_dict()) == names, "the file keeps raw weights only"


@torch.no_grad()
def test_folding_follows_the_weight(case: tuple[SpectralNorm, Tensor]) -> None:
    layer, x = case
    fold(layer.eval())
    kept = layer.folded
    layer.weight += torch.randn_like(layer.weight)
    expected = copy.deepcopy(layer).train().eval()(x)
    assert torch.equal(layer(x), expected), "what is out of date is passed over"
    fold(layer)
    assert layer.folded is kept, "a compiled network holds on to this tensor"
    assert torch.equal(layer(x), expected)
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})
    assert not torch.allclose(layer(x), expected)
    assert torch.equal(layer(x), copy.deepcopy(layer).train().eval()(x))


def test_training_and_gradients_pass_the_folded_weight_over(
    case: tuple[SpectralNorm, Tensor],
) -> None:
    layer, x = case
    fold(layer.eval())
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.train()
    assert layer.folded is None
    fold(layer)
    assert layer.folded is None, "training divides anew in every call"


def test_folded_weight_moves_with_the_layer() -> None:
    layer = PairedConv2d(3, 5, 3).eval()
    fold(layer)
    compute.choose(torch.device("cpu")).prepare(layer.to(torch.float64))
    assert layer.folded is not None
    assert layer.folded.dtype == torch.float64
    assert layer.folded.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert layer(torch.ones(1, 3, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_sigma_is_found_in_float32_under_autocast() -> None:
    layer = SpectralLinear(64, 64).eval()
    exact = layer.normalized_weight()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer.normalized_weight(), exact, rtol=0, atol=0)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.normalized_weight().dtype == torch.bfloat16
    exact = copy.deepcopy(half).float().normalized_weight()
    assert torch.equal(half.normalized_weight(), exact.bfloat16())
