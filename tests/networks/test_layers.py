"""Resampling, initialisation and noise embeddings."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genlab.networks.kernels.gelu import GELU_PIECE, gelu
from genlab.networks.layers.initialised import Conv2d, Init, Linear
from genlab.networks.layers.noise_embeddings import FourierEmbedding, PositionalEmbedding
from genlab.networks.layers.resampling import DownAfterConv2d, Resample, Resampling

XAVIER = Init("xavier_uniform")


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 2], [1, 5, 10, 10, 5, 1]])
def test_resampling_keeps_constants_inside_and_up_is_the_transpose_of_down(
    taps: list[float],
) -> None:
    down, up = Resample("down", taps), Resample("up", taps)
    x, y = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)
    # <down x, 4 y> = <x, up y>
    torch.testing.assert_close((4 * down(x) * y).sum(), (x * up(y)).sum(), rtol=1e-4, atol=1e-4)
    ones = down(torch.ones(1, 1, 16, 16))[..., 2:-2, 2:-2]
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_resampling_follows_its_input_and_may_be_trained_through_afterwards() -> None:
    taps = [1, 3, 3, 1]
    with torch.device("meta"):
        resampling = Resampling("down", taps)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with torch.inference_mode():
        out = resampling(x)
    assert torch.equal(out, Resample("down", taps)(x))
    resampling(x).sum().backward()
    assert x.grad is not None
    assert resampling(x.double()).dtype == torch.float64


def test_the_short_cut_for_the_box_is_the_box() -> None:
    fast, slow = Resample("up", [1, 1]), Resample("up", [1, 1])
    slow.box = False
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fast(x), slow(x))
    fast, slow = Resample("down", [1, 1]), Resample("down", [1, 1])
    slow.box = False
    torch.testing.assert_close(fast(x), slow(x))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_the_residual_branch_filters_after_the_convolution(taps: list[float]) -> None:
    after = DownAfterConv2d(2, 3, 3, taps=taps, init=Init("xavier_uniform", bias=1.0))
    x = torch.randn(1, 2, 16, 16)
    filtered = Resample("down", taps)(nn.functional.conv2d(x, after.weight, padding=1))
    assert after.bias is not None
    expected = filtered + after.bias[:, None, None]
    margin = len(taps) // 2
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    torch.testing.assert_close(after(x)[inner], expected[inner])
    before = nn.functional.conv2d(Resample("down", taps)(x), after.weight, after.bias, padding=1)
    assert not torch.allclose(before, after(x), atol=1e-3)


@pytest.mark.parametrize(
    ("init", "bound"),
    [
        (XAVIER, math.sqrt(6 / (300 + 200))),
        (Init("xavier_uniform", weight=0.1), 0.1 * math.sqrt(6 / (300 + 200))),
        (Init("kaiming_uniform"), math.sqrt(3 / 300)),
    ],
)
def test_uniform_weights_fill_their_bounds(init: Init, bound: float) -> None:
    layer = Linear(300, 200, init=init)
    assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
    assert not layer.bias.any()


def test_normal_weights_have_their_deviation_and_biases_their_layers_fans() -> None:
    layer = Linear(300, 200, init=Init("kaiming_normal", weight=2.0, bias=0.5))
    assert float(layer.weight.detach().std()) == pytest.approx(2 / math.sqrt(300), rel=0.02)
    assert float(layer.bias.detach().std()) == pytest.approx(0.5 / math.sqrt(300), rel=0.2)


@pytest.mark.parametrize(("ours", "torchs"), [(Conv2d, nn.Conv2d), (Linear, nn.Linear)])
def test_layers_are_built_as_torchs_are(ours: Any, torchs: Any) -> None:
    """Adapters build layers by the type that they find, and know torch's constructors only."""
    known = [*inspect.signature(torchs).parameters]
    taken = [
        name
        for name, parameter in inspect.signature(ours).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    assert taken == known[: len(taken)]
    assert taken[-1] == "bias"
    arguments = (4, 6, (3, 1), (2, 1), 0) if torchs is nn.Conv2d else (4, 6)
    torch.manual_seed(1)
    expected = torchs(*arguments, bias=True)
    torch.manual_seed(1)
    layer = ours(*arguments, bias=True)
    assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(layer.bias, expected.bias)
    x = torch.randn(2, 4, 9, 9) if torchs is nn.Conv2d else torch.randn(2, 4)
    assert torch.equal(layer(x), expected(x))


@pytest.mark.parametrize("kernel", [1, 3, (3, 1), (1, 5)])
def test_convolutions_keep_height_and_width_unless_told_not_to(kernel: Any) -> None:
    x = torch.randn(1, 2, 9, 7)
    assert Conv2d(2, 3, kernel, init=XAVIER)(x).shape == (1, 3, 9, 7)
    layer = Conv2d(2, 3, kernel, padding=0, bias=False)
    assert layer.bias is None
    assert layer(x).numel() <= 3 * 9 * 7


def test_positional_features_end_where_they_should() -> None:
    c_noise = torch.tensor([100.0])
    for endpoint, last in ((True, 1e-4), (False, 1e-4 ** (7 / 8))):
        cos, sin = PositionalEmbedding(16, endpoint=endpoint)(c_noise).chunk(2, dim=1)
        assert float(sin[0, 0]) == pytest.approx(math.sin(100), abs=1e-5)
        assert float(cos[0, -1]) == pytest.approx(math.cos(100 * last), abs=1e-6)
        assert float(sin[0, -1]) == pytest.approx(math.sin(100 * last), abs=1e-6)


def test_frequencies_stay_float32_in_every_dtype() -> None:
    embedding = FourierEmbedding(16)
    network, freqs = nn.Sequential(embedding), embedding.freqs.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        network.to(dtype)
        assert torch.equal(embedding.freqs, freqs)
    assert embedding(torch.tensor([0.3])).dtype == torch.float32


@pytest.mark.parametrize("threads", [1, 2])
def test_gelu_in_pieces_is_torchs(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than two pieces, of which the last is not full; and what overflows when cubed.
    x = torch.randn(3 * GELU_PIECE // 100 + 7, 100) * 3
    x[0, :4] = torch.tensor([-1e30, 1e30, -100.0, 0.0])
    expected, kept = F.gelu(x, approximate="tanh"), x.clone()
    assert torch.equal(gelu(x), expected)  # gradients are on
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        monkeypatch.delattr(F, "gelu")  # it must do without
        with torch.no_grad():
            out = gelu(x)
            assert gelu(torch.empty(0, 4)).shape == (0, 4)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, kept)


def test_gelu_has_gradients_and_keeps_narrow_types_and_strange_layouts() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu, x)
    with torch.no_grad():
        half = torch.randn(4, 5, dtype=torch.bfloat16)
        assert torch.equal(gelu(half), F.gelu(half, approximate="tanh"))
        turned = torch.randn(4, 5).t()
        assert torch.equal(gelu(turned), F.gelu(turned, approximate="tanh"))
        assert gelu(torch.empty(2, 3, device="meta")).is_meta
