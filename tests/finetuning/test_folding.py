"""What was added becomes part of the weights: exactly, of the right ones, or not at all."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tunable_networks import BUILDERS, TRANSFORMERS, OwnNetwork, build, call

from genlab.errors import ConfigError
from genlab.finetuning.layouts import LAYOUTS, layout_of
from genlab.finetuning.methods.affine import switch_on_affine, switched_on
from genlab.finetuning.methods.bitfit import BitFit
from genlab.finetuning.methods.diffit import DiffFit
from genlab.finetuning.methods.folding import fold
from genlab.finetuning.methods.norms import NormTuning
from genlab.finetuning.methods.scales import held_scale
from genlab.networks.layout import Branch, Layout, ModulatedNorm, Rows, build_layout
from genlab.registry import class_path

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
INPUTS = (torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1, 7, 4]))


def shaken(network: nn.Module, scale: float = 0.3) -> list[str]:
    """Prepare a network, and move all that trains away from where it starts."""
    names = DiffFit(blocks="all").prepare(network)
    with torch.no_grad():
        for name in names:
            parameter = network.get_parameter(name)
            parameter.add_(scale * torch.randn_like(parameter))
    return names


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_folding_is_exact_up_to_rounding(name: str) -> None:
    network = build(name).double()
    shaken(network)
    unmerged = call(network, X.double(), *INPUTS)
    error = (call(fold(network), X.double(), *INPUTS) - unmerged).norm() / unmerged.norm()
    assert error < 1e-14  # 3e-15 measured at the most: some hundred roundings of 1e-16


@pytest.mark.parametrize("name", BUILDERS)
def test_only_what_takes_something_in_changes(name: str) -> None:
    network = build(name)
    layout = layout_of(network)
    trained = set(shaken(network))
    before = dict(network.named_parameters())
    values = {key: value.detach().clone() for key, value in before.items()}
    takers = {branch.layer for branch in layout.branches}
    takers |= {norm.scale.layer for norm in layout.modulated if name in TRANSFORMERS}
    after = dict(fold(network).named_parameters())
    changed = {key for key in after if not torch.equal(after[key], values[key])}
    kinds = ("weight", "bias")
    assert changed <= {f"{layer}.{kind}" for layer in takers for kind in kinds}
    assert {f"{layer}.weight" for layer in takers} <= changed
    # Biases train beside gamma, and are multiplied all the same.
    assert {f"{layer}.bias" for layer in takers} & trained <= changed
    # Another network may share what was there, so it is not written to.
    assert all(torch.equal(before[key], values[key]) for key in values)


@torch.no_grad()
def test_gamma_multiplies_rows_and_bias() -> None:
    network = build("dit")
    DiffFit(blocks=[1]).prepare(network)
    gamma = 1 + torch.randn(16)
    network.blocks[1].gamma_mlp.copy_(gamma)  # type: ignore[index, union-attr]
    layer: nn.Linear = network.get_submodule("blocks.1.mlp.fc2")  # type: ignore[assignment]
    weight, bias = layer.weight.clone(), layer.bias.clone()
    fold(network)
    torch.testing.assert_close(layer.weight, gamma[:, None] * weight)
    torch.testing.assert_close(layer.bias, gamma * bias)


@torch.no_grad()
def test_affine_goes_into_scale_and_shift() -> None:
    network = build("dit")
    NormTuning().prepare(network)
    norm: nn.LayerNorm = network.get_submodule("final_layer.norm_final")  # type: ignore[assignment]
    w, v = (norm.weight.copy_(1 + torch.randn(16)), norm.bias.copy_(torch.randn(16)))
    w, v = w.clone(), v.clone()
    modulation = network.get_submodule("final_layer.adaLN_modulation")
    condition = torch.randn(5, 16)
    shift, scale = modulation(condition).chunk(2, dim=1)
    fold(network)
    new_shift, new_scale = modulation(condition).chunk(2, dim=1)
    torch.testing.assert_close(new_scale, w * (1 + scale) - 1)
    torch.testing.assert_close(new_shift, v * (1 + scale) + shift)
    assert norm.weight is None
    assert norm.bias is None
    assert not norm.elementwise_affine


@pytest.mark.parametrize("name", ["dit", "theirs", "own"])
@torch.no_grad()
def test_gamma_stands_on_the_branch_and_not_on_the_sum(name: str) -> None:
    network = build(name)
    silent = copy.deepcopy(network)
    DiffFit(blocks=[0]).prepare(network)
    for branch in layout_of(network).branches:
        gamma = held_scale(network, branch)
        if gamma is not None:
            gamma.zero_()
            layer: nn.Linear = silent.get_submodule(branch.layer)  # type: ignore[assignment]
            layer.weight.zero_()
            layer.bias.zero_()
    torch.testing.assert_close(call(network, X, *INPUTS), call(silent, X, *INPUTS))


@pytest.mark.parametrize("name", ["dit", "ddpmpp", "own"])
@torch.no_grad()
def test_type_and_memory_format_stay(name: str) -> None:
    network = build(name).to(torch.bfloat16).to(memory_format=torch.channels_last)
    strides = {key: (each.dtype, each.stride()) for key, each in network.named_parameters()}
    shaken(network)
    fold(network)
    assert strides == {key: (each.dtype, each.stride()) for key, each in network.named_parameters()}


def test_a_plain_network_stays_as_it_is() -> None:
    network = build("dit")
    before = dict(network.named_parameters())
    assert fold(network) is network
    BitFit().merge(network)
    assert all(network.get_parameter(name) is each for name, each in before.items())


def test_preparing_twice_is_refused() -> None:
    for name in ("dit", "own"):
        network = build(name)
        DiffFit().prepare(network)
        trained = [key for key, each in network.named_parameters() if each.requires_grad]
        with pytest.raises(ConfigError, match="is multiplied by a scale vector already; merge"):
            DiffFit(blocks="all").prepare(network)
        assert trained == [key for key, each in network.named_parameters() if each.requires_grad]
        DiffFit().merge(network)
        DiffFit(blocks="all").prepare(network)


class Modulated(OwnNetwork):
    """Normalisations without parameters; one of them is scaled and shifted by a layer."""

    def __init__(self, bias: bool, modulated: bool) -> None:
        super().__init__()
        self.modulated = modulated
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8, affine=False), nn.Identity(), nn.Identity()])
        self.modulation = nn.Linear(1, 16, bias=bias)

    def forward(self, x: torch.Tensor, level: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        h = self.inlet(x)
        scale, shift = self.modulation(level[:, None])[:, :, None, None].chunk(2, dim=1)
        h = h + self.convolutions[0](F.silu(self.norms[0](h) * (1 + scale) + shift))
        return self.outlet(h)


@LAYOUTS.register(class_path(Modulated))
def modulated_layout(network: nn.Module) -> Layout:
    norm = ModulatedNorm(
        norm="norms.0",
        scale=Rows(layer="modulation", start=0, stop=8),
        shift=Rows(layer="modulation", start=8, stop=16),
    )
    return build_layout(
        network,
        blocks=["convolutions.0"],
        branches=[
            Branch(block="convolutions.0", kind="convolution", layer="convolutions.0", width=8)
        ],
        modulated=[norm] if network.modulated else [],
        modules={},
    )


@torch.no_grad()
def test_other_normalisations_fold_where_their_modulation_is_known() -> None:
    network = Modulated(bias=True, modulated=True).double()
    plain = list(network.state_dict())
    shaken(network)
    unmerged = call(network, X.double(), INPUTS[0].double(), INPUTS[1])
    assert list(fold(network).state_dict()) == plain
    merged = call(network, X.double(), INPUTS[0].double(), INPUTS[1])
    torch.testing.assert_close(merged, unmerged, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("bias", "modulated", "message"),
    [
        (True, False, "norms.0 was given weight and bias, and no modulation stands behind it"),
        (False, True, "can only go into one modulation layer with biases, which modulation is not"),
    ],
)
def test_what_nothing_can_take_in_is_not_merged(bias: bool, modulated: bool, message: str) -> None:
    network = Modulated(bias=bias, modulated=modulated)
    method = DiffFit()
    shaken(network)
    notes = method.notes(network)
    assert any("cannot be merged" in note for note in notes) == (not modulated)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        method.merge(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_affine_is_switched_on_once_and_where_it_is_missing() -> None:
    network = build("dit")
    layout = layout_of(network)
    given = switch_on_affine(network, layout)
    assert given == list(layout.norms)
    assert len(given) == 7  # two a block, and the last layer's
    assert switch_on_affine(network, layout) == []
    assert switched_on(network, layout) == given
    own = build("own")  # its normalisations have parameters by themselves
    assert switch_on_affine(own, layout_of(own)) == []
