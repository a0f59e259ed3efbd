"""VPT-deep: tokens that each block gets and gives back."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tunable_networks import BUILDERS, TRANSFORMERS, Pictures, build

from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.base import METHODS
from genlab.finetuning.methods.prompts import VisualPrompts
from genlab.networks.biggan import BigGANGenerator
from genlab.networks.dit import DiT_XL_2


@pytest.fixture(scope="module")
def pictures(fashion_mnist: Path) -> Pictures:
    return Pictures.read(fashion_mnist)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1_730_304),
        ({"tokens": 1, "class_table": False}, 32_256),
    ],
)
def test_counts_on_dit_xl_2_with_101_classes(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = DiT_XL_2(img_resolution=32, in_channels=4, out_channels=8, label_dim=101)
    names = METHODS.build("vpt", **options).prepare(network)
    trained = [item for item in network.named_parameters() if item[1].requires_grad]
    assert [name for name, _ in trained] == names
    assert sum(parameter.numel() for _, parameter in trained) == count
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_prompts_train_alone(name: str, pictures: Pictures) -> None:
    network = build(name)
    base, method = copy.deepcopy(network), VisualPrompts(tokens=3)
    names = method.prepare(network)
    layout = layout_of(network)
    prompts = [f"{block}.prompts" for block in layout.blocks]
    assert set(names) == {*prompts, *layout.groups["class"]}
    assert set(network.state_dict()) - set(base.state_dict()) == set(prompts)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        start, plain = pictures.predict(network), pictures.predict(base)
    assert start.shape == plain.shape
    assert not torch.allclose(start, plain, atol=1e-3)  # they take part from the start
    assert "not the base's" in method.notes(network)[0]
    pictures.train(network, names, steps=2)
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == set(names)
    pictures.predict(network).square().mean().backward()
    parameters = dict(network.named_parameters())
    assert {n for n, each in parameters.items() if each.grad is not None} == set(names)
    assert all(parameters[n].grad.any() for n in prompts)  # type: ignore[union-attr]  # have one


@torch.no_grad()
def test_each_block_sees_its_own_prompts_before_the_tokens() -> None:
    network: Any = build("dit")
    VisualPrompts(tokens=3).prepare(network)
    block, seen = network.blocks[1], []
    block.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plain = build("dit").blocks[1]  # type: ignore[index]  # a ModuleList
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 16)
    out = block(x, condition)
    assert seen[0].shape == (2, 8, 16)
    longer = torch.cat([block.prompts.expand(2, -1, -1), x], dim=1)
    torch.testing.assert_close(out, plain(longer, condition)[:, 3:])  # type: ignore[operator]


def test_the_start_is_uniform_as_in_xavier_s() -> None:
    network: Any = build("dit")
    VisualPrompts(tokens=200).prepare(network)
    bound = math.sqrt(6 / (1 * 2**2 + 16))
    for block in network.blocks:
        assert block.prompts.abs().max() <= bound
        assert block.prompts.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not torch.equal(network.blocks[0].prompts, network.blocks[1].prompts)


@torch.no_grad()
def test_what_is_saved_makes_the_same_network(pictures: Pictures) -> None:
    method, network = VisualPrompts(tokens=3), build("dit")
    names = method.prepare(network)
    saved = {key: value.clone() for key, value in method.saved(network).items()}
    assert list(saved) == names
    expected, copied = pictures.predict(network), copy.deepcopy(network)
    again = build("dit")
    torch.manual_seed(1)
    method.prepare(again)
    assert not torch.equal(pictures.predict(again), expected)
    method.load(again, saved)
    assert torch.equal(pictures.predict(again), expected)
    method.load(network, {key: 0 * value for key, value in saved.items()})
    assert torch.equal(pictures.predict(copied), expected)


def test_checkpointing_changes_nothing(pictures: Pictures) -> None:
    gradients = []
    for checkpointing in (False, True):
        network: Any = build("dit").train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        torch.manual_seed(2)
        names = VisualPrompts(tokens=3).prepare(network)
        pictures.predict(network).square().mean().backward()
        gradients.append([network.get_parameter(name).grad for name in names])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_half_precision(pictures: Pictures) -> None:
    network = build("dit")
    VisualPrompts(tokens=3).prepare(network)
    expected = pictures.predict(network)
    with torch.autocast("cpu", torch.bfloat16):
        cast = pictures.predict(network)
    torch.testing.assert_close(cast.float(), expected, rtol=0.1, atol=0.1)
    assert pictures.predict(network.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", sorted(set(BUILDERS) - set(TRANSFORMERS)))
def test_networks_without_tokens_are_refused(name: str) -> None:
    network = build(name)
    keys = list(network.state_dict())
    with pytest.raises(ConfigError, match="VPT needs a transformer"):
        VisualPrompts().prepare(network)
    assert list(network.state_dict()) == keys


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="tokens must be at least 1"):
        VisualPrompts(tokens=0)
    network, method = build("dit"), VisualPrompts()
    method.prepare(network)
    with pytest.raises(ConfigError, match="prompts cannot be merged"):
        method.merge(network)
    with pytest.raises(ConfigError, match="holds prompts already"):
        method.prepare(network)
    with pytest.raises(ConfigError, match="VPT needs a transformer"):
        method.prepare(BigGANGenerator(img_resolution=32, num_classes=3, channels=8, dim_z=8))
