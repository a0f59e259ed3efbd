"""The choices of genlab.compute."""

import pytest
import torch
from torch import Tensor, nn

from genlab import compute
from genlab.networks import SongUNet
from genlab.networks.layers.initialised import Conv2d, Init, TokenLinear

CPU = torch.device("cpu")


def _measure(monkeypatch: pytest.MonkeyPatch, found: dict[str, float]) -> None:
    """Let the measurement find these speeds, others as on some processor."""
    usual = {"convolution": 236.0, "bfloat16 convolution": 400.0, "product": 195.0}
    speeds = {**usual, "1x1 convolution": 190.0, **found}
    monkeypatch.setattr(compute, "_speeds", lambda: speeds)


def test_the_cpu_plan_says_what_it_chose() -> None:
    plan = compute.choose(CPU)
    assert plan is compute.choose(CPU)
    assert plan.memory_format is torch.channels_last
    assert all(speed > 0 for speed in plan.speeds.values())
    words = compute.describe(CPU)
    assert words["memory format"] == "channels_last"
    assert ("Winograd" in words["convolution"]) == plan.winograd
    assert "bfloat16" in words["autocast"]


@pytest.mark.parametrize(("product", "pays"), [(195, True), (90, False)])
def test_winograd_needs_fast_products(
    monkeypatch: pytest.MonkeyPatch, product: float, pays: bool
) -> None:
    _measure(monkeypatch, {"product": product})
    assert compute._cpu(CPU).winograd == pays


@pytest.mark.parametrize(("product", "pays"), [(90, True), (195, False)])
def test_products_become_convolutions_where_these_are_faster(
    monkeypatch: pytest.MonkeyPatch, product: float, pays: bool
) -> None:
    _measure(monkeypatch, {"product": product})
    plan = compute._cpu(CPU)
    assert plan.convolve_products == pays
    assert ("1x1" in plan.describe()["token products"]) == pays
    layer = TokenLinear(8, 8, init=Init("xavier_uniform"))
    plan.prepare(layer)
    assert layer.use_convolution == pays


@pytest.mark.parametrize(("speed", "fast"), [(440.0, True), (240.0, False)])
def test_a_fast_type_is_one_that_gains_time(
    monkeypatch: pytest.MonkeyPatch, speed: float, fast: bool
) -> None:
    _measure(monkeypatch, {"bfloat16 convolution": speed})
    plan = compute._cpu(CPU)
    assert (torch.bfloat16 in plan.fast_dtypes) == fast
    assert torch.bfloat16 in plan.autocast_dtypes


def test_an_unknown_device_gets_a_plain_plan() -> None:
    plan = compute.choose(torch.device("meta"))
    assert not plan.winograd
    assert plan.describe()["fast types"] == "float32 only"


def test_preparing_moves_layout_and_kernels_but_no_number() -> None:
    network = SongUNet(8, 1, 1, model_channels=8, channel_mult=[1], num_blocks=1)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    plan = compute.choose(CPU)
    assert plan.prepare(plan.prepare(network)) is network
    convolution = network.get_submodule("enc.8x8_block0.conv0")
    assert isinstance(convolution, Conv2d)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert convolution.use_winograd == plan.winograd
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_preparing_takes_any_module() -> None:
    compute.choose(CPU).prepare(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 3)))


def test_autocast_is_off_for_float32() -> None:
    plan, layer = compute.choose(CPU), nn.Linear(2, 2)
    with plan.autocast(torch.float32):
        assert layer(torch.ones(1, 2)).dtype == torch.float32
    with plan.autocast(torch.bfloat16):
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.mark.gpu
def test_a_gpu_gets_its_own_plan() -> None:
    plan = compute.choose(torch.device("cuda"))
    assert not plan.winograd
    assert torch.float16 in plan.autocast_dtypes


def test_each_worker_computes_alone_and_the_others_as_before() -> None:
    before = torch.get_num_threads()

    def threads(_: int) -> tuple[int, int]:
        first = torch.get_num_threads()
        (torch.ones(256, 256) @ torch.ones(256, 256)).sum()
        return first, torch.get_num_threads()

    assert set(compute.workers(3).map(threads, range(6))) == {(1, 1)}
    assert torch.get_num_threads() == before


def test_a_batch_dealt_out_by_rows_comes_back_in_order() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor, shared: Tensor, extra: Tensor | None = None) -> Tensor:
            assert not torch.is_grad_enabled()
            return x + shared + (0 if extra is None else extra)

    x, shared = torch.arange(14.0).reshape(7, 2), torch.ones(1)
    with torch.no_grad():
        assert torch.equal(compute.by_rows(Shifted(), 7, x, shared), x + 1)
        assert torch.equal(compute.by_rows(Shifted(), 7, x, shared, extra=x), 2 * x + 1)


def test_rows_stay_together_where_gradients_are_wanted() -> None:
    network = nn.BatchNorm1d(3)  # sees the batch
    x = torch.randn(8, 3)
    assert torch.equal(compute.by_rows(network, 8, x), nn.BatchNorm1d(3)(x))
