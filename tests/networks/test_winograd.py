"""Winograd's algorithm is a convolution."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from genlab.compute import choose
from genlab.networks import SongUNet
from genlab.networks.kernels import winograd


def problem(
    batch: int, channels: int, out: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = F.silu(torch.randn(batch, channels, size, size))
    weight = torch.randn(out, channels, 3, 3) / (3 * channels**0.5)
    return x, weight, torch.randn(out)


@pytest.mark.parametrize("shape", [(2, 128, 160, 16), (1, 4, 3, 4), (5, 130, 8, 20)])
@torch.no_grad()
def test_it_equals_the_direct_convolution(shape: tuple[int, int, int, int]) -> None:
    x, weight, bias = problem(*shape)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    ours = winograd.conv3x3(x, weight, bias)
    # 1.3e-6 measured at 256 channels; the textbook points give 2.3e-6
    assert float((ours - exact).norm() / exact.norm()) < 2e-6


@torch.no_grad()
def test_chunks_and_memory_formats_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = problem(5, 16, 8, 8)
    whole = winograd.conv3x3(x, weight, bias)
    monkeypatch.setattr(winograd, "CHUNK", 1)
    torch.testing.assert_close(winograd.conv3x3(x, weight, bias), whole)
    last = x.contiguous(memory_format=torch.channels_last)
    result = winograd.conv3x3(last, weight, bias)
    torch.testing.assert_close(result, whole)
    assert result.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_threads_share_the_images_and_keep_torch_s_own_setting() -> None:
    x, weight, bias = problem(5, 16, 8, 8)
    single = winograd.conv3x3(x, weight, bias)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        shared = winograd.conv3x3(x, weight, bias)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as newcomers:
            assert newcomers.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(shared, single)


def test_the_choice_does_not_depend_on_the_batch() -> None:
    weight = torch.empty(128, 128, 3, 3)
    with torch.no_grad():
        for batch in (1, 16):
            assert winograd.suits(torch.empty(batch, 128, 16, 16), weight)
            assert not winograd.suits(torch.empty(batch, 128, 8, 8), weight)
        assert not winograd.suits(torch.empty(1, 128, 18, 18), weight)
        assert not winograd.suits(torch.empty(1, 128, 16, 16), weight.bfloat16())
        assert not winograd.suits(torch.empty(1, 64, 16, 16), torch.empty(128, 64, 3, 3))
        assert not winograd.suits(torch.empty(1, 128, 16, 16), torch.empty(128, 128, 1, 1))
    assert not winograd.suits(torch.empty(1, 128, 16, 16), weight)  # gradients are wanted


def test_a_compiler_sees_the_right_shape() -> None:
    torch.library.opcheck(
        torch.ops.genlab.winograd_conv3x3.default,
        problem(2, 8, 4, 8),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_a_prepared_network_differs_by_rounding_only() -> None:
    network = SongUNet(
        16, 3, 3, model_channels=128, channel_mult=[1], num_blocks=1, attn_resolutions=[]
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, c_noise = torch.randn(2, 3, 16, 16), torch.zeros(2)
        with torch.profiler.profile() as before:
            reference = network(x, c_noise)
        replace(choose(torch.device("cpu")), winograd=True).prepare(network)
        with torch.profiler.profile() as after:
            ours = network(x, c_noise)
    direct = [
        sum(event.name == "aten::conv2d" for event in profile.events() or [])
        for profile in (before, after)
    ]
    assert direct[1] < direct[0]  # the others took this algorithm
    assert float((ours - reference).norm() / reference.norm()) < 5e-6
