"""Bottleneck adapters: where they stand, what they add, and that they stay."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tunable_networks import BUILDERS, Pictures, build, call

from genlab import compute
from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.base import METHODS
from genlab.finetuning.methods.bottleneck import BottleneckAdapter
from genlab.networks.biggan import BigGANGenerator
from genlab.networks.dit import DiT_XL_2
from genlab.networks.gated_pixelcnn import GatedPixelCNN

ONE = 1152 * 64 + 64 + 64 * 1152 + 1152
PLACEMENTS = ("parallel", "sequential")


@pytest.fixture(scope="module")
def pictures(fashion_mnist: Path) -> Pictures:
    return Pictures.read(fashion_mnist)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 4_280_320),
        ({"placement": "sequential"}, 4_280_320),
        ({"per": "branch", "blocks": "half"}, 28 * ONE + 117_504),
        ({"blocks": [0, -1], "class_table": False}, 2 * ONE),
    ],
)
def test_counts_on_dit_xl_2_with_101_classes(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = DiT_XL_2(img_resolution=32, in_channels=4, out_channels=8, label_dim=101)
    names = METHODS.build("adapter", **options).prepare(network)
    trained = [item for item in network.named_parameters() if item[1].requires_grad]
    assert [name for name, _ in trained] == names
    assert sum(parameter.numel() for _, parameter in trained) == count
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize("per", ["block", "branch"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", BUILDERS)
def test_every_adapter_acts_once_it_has_trained(
    name: str, placement: Any, per: Any, pictures: Pictures
) -> None:
    network = build(name)
    base = copy.deepcopy(network).requires_grad_(False)
    method = BottleneckAdapter(placement=placement, per=per, bottleneck=4)
    names = method.prepare(network)
    assert set(base.state_dict()) <= set(network.state_dict())
    layout = layout_of(network)
    assert sum(each.endswith("adapter.up.weight") for each in names) == len(
        layout.branches if per == "branch" else layout.blocks
    )
    with torch.no_grad():
        assert torch.equal(pictures.predict(network), pictures.predict(base))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pictures.train(network, names, steps=2)  # the first step moves the second layers off zero
    pictures.predict(network).square().mean().backward()
    parameters = dict(network.named_parameters())
    assert {n for n, each in parameters.items() if each.grad is not None} == set(names)
    rows = layout.groups["class"]
    assert all(parameters[n].grad.any() for n in names if n not in rows)  # type: ignore[union-attr]  # have one
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == set(names)


@torch.no_grad()
def test_what_it_computes(pictures: Pictures) -> None:
    network: Any = build("dit")
    BottleneckAdapter(bottleneck=4, scale=0.5, activation="gelu").prepare(network)
    mlp, x = network.blocks[1].mlp, torch.randn(2, 5, 16)
    without = mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x), approximate="tanh"))
    mlp.adapter.up.weight.normal_()
    down = torch.nn.functional.gelu(mlp.adapter.down(x))
    torch.testing.assert_close(mlp(x), without + 0.5 * mlp.adapter.up(down))


@torch.no_grad()
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["dit", "ddpmpp"])
def test_what_is_saved_makes_the_same_network(
    name: str, placement: Any, pictures: Pictures
) -> None:
    method, network = BottleneckAdapter(placement=placement, bottleneck=2), build(name)
    names = method.prepare(network)
    with torch.enable_grad():
        pictures.train(network, names)
    saved = {key: value.clone() for key, value in method.saved(network).items()}
    assert list(saved) == names
    again = build(name)
    method.prepare(again)
    plan = dataclasses.replace(
        compute.choose(torch.device("cpu")), winograd=True, convolve_products=True
    )
    expected = pictures.predict(network)
    copied = copy.deepcopy(network)
    method.load(again, saved)
    assert torch.equal(pictures.predict(again), expected)
    torch.testing.assert_close(pictures.predict(plan.prepare(again)), expected)
    method.load(network, {key: 0 * value for key, value in saved.items()})
    assert torch.equal(pictures.predict(copied), expected)


@torch.no_grad()
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_generators_of_gans_take_them(placement: Any) -> None:
    network = BigGANGenerator(
        img_resolution=32, num_classes=3, channels=8, dim_z=8, attn_resolutions=[16]
    ).eval()
    z, labels = torch.randn(2, 8), torch.tensor([0, 2])
    before = network(z, network.embed_labels(labels))
    method = BottleneckAdapter(placement=placement, bottleneck=2, per="branch", class_table=False)
    names = method.prepare(network)
    assert torch.equal(network(z, network.embed_labels(labels)), before)
    for name in names:
        network.get_parameter(name).normal_()
    assert not torch.allclose(network(z, network.embed_labels(labels)), before, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@torch.no_grad()
def test_the_output_stays_in_other_types(dtype: torch.dtype, pictures: Pictures) -> None:
    network = build("dit").to(dtype)
    before = pictures.predict(network)
    BottleneckAdapter().prepare(network)
    assert torch.equal(pictures.predict(network), before)
    network = build("dit")
    with torch.autocast("cpu", torch.bfloat16):
        before = pictures.predict(network)
        BottleneckAdapter().prepare(network)
        assert torch.equal(pictures.predict(network), before)


def test_checkpointing_and_a_single_sample() -> None:
    network: Any = build("dit").train()
    network.enable_gradient_checkpointing()
    names = BottleneckAdapter().prepare(network)
    out = call(network, torch.randn(1, 1, 8, 8), torch.ones(1), torch.tensor([3]))
    out.square().mean().backward()
    assert all(network.get_parameter(name).grad is not None for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck": 0}, "bottleneck must be at least 1"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": float("nan")}, "scale must be above 0"),
        ({"blocks": "none"}, "blocks=none leaves no adapter"),
        ({"blocks": "some"}, "write all, half, none"),
        ({"placement": "behind"}, "placement takes one of parallel, sequential"),
        ({"activation": "tanh"}, "activation takes one of relu, gelu, silu"),
        ({"blocks": [7]}, "there is no block 7"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        METHODS.build("adapter", **options).prepare(build("dit"))


def test_refusals() -> None:
    network = build("dit")
    method = BottleneckAdapter()
    method.prepare(network)
    with pytest.raises(ConfigError, match="a nonlinearity stands between their layers"):
        method.merge(network)
    with pytest.raises(ConfigError, match="holds an adapter already"):
        method.prepare(network)
    pixels = GatedPixelCNN(
        img_resolution=8, label_dim=3, num_levels=4, channels=4, num_layers=3, head_channels=8
    )
    with pytest.raises(ConfigError, match="decodes pixel by pixel"):
        method.prepare(pixels)
