"""What holds for every method that GenLab writes itself, on every network that tells its parts."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from tunable_networks import BUILDERS, Pictures, build

from genlab.errors import CheckpointError, ConfigError
from genlab.finetuning.layouts import LAYOUTS, layout_of
from genlab.finetuning.methods.base import METHODS, Method, choose_blocks
from genlab.finetuning.methods.bitfit import BitFit
from genlab.finetuning.methods.class_table import ClassTableTuning
from genlab.finetuning.methods.diffit import DiffFit
from genlab.finetuning.methods.full import FullTuning
from genlab.finetuning.methods.last import LastLayers
from genlab.finetuning.methods.norms import NormTuning
from genlab.networks import DiT
from genlab.networks.diffusers_unet import DiffusersUNet
from genlab.networks.dit import DiT_XL_2
from genlab.networks.layout import Layout, build_layout
from genlab.registry import class_path

OWN: dict[str, Method] = {
    "diffit": DiffFit(),
    "diffit-last": DiffFit(blocks=[-1], class_table=False),
    "bitfit": BitFit(),
    "norm": NormTuning(),
    "class-table": ClassTableTuning(),
    "last": LastLayers(),
    "last-block": LastLayers(blocks=1, class_table=False),
    "full": FullTuning(),
}

ADDING = ("diffit", "norm")
"""Those that add something to the network."""


@pytest.fixture(scope="module")
def pictures(fashion_mnist: Path) -> Pictures:
    return Pictures.read(fashion_mnist)


@pytest.fixture(params=BUILDERS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.fixture(params=OWN)
def method(request: pytest.FixtureRequest) -> Method:
    return OWN[request.param]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("diffit", {"blocks": "none"}, 738_464),
        ("diffit", {}, 770_720),
        ("diffit", {"blocks": "all"}, 802_976),
        ("diffit", {"blocks": "all", "class_table": False}, 802_976 - 117_504),
        ("bitfit", {}, 607_136),
        ("bitfit", {"class_table": False}, 489_632),
        ("norm", {}, 248_832),
        ("norm", {"class_table": False}, 131_328),
        ("class-table", {}, 117_504),
        ("last", {}, 2_810_912),
        ("last", {"blocks": 2}, 2_810_912 + 2 * 23_905_152),
        ("full", {}, 673_799_072),
    ],
)
def test_counts_on_dit_xl_2_with_101_classes(name: str, options: object, count: int) -> None:
    with torch.device("meta"):
        network = DiT_XL_2(img_resolution=32, in_channels=4, out_channels=8, label_dim=101)
    plain = {key: value.shape for key, value in network.state_dict().items()}
    method: Method = METHODS.build(name, **options)  # type: ignore[arg-type]
    parameters = dict(method_parameters(method, network))
    assert sum(parameter.numel() for parameter in parameters.values()) == count
    assert all(parameter.is_meta for parameter in network.parameters())  # nothing was allocated
    merged = method.merge(network).state_dict()
    assert {key: value.shape for key, value in merged.items()} == plain


def method_parameters(method: Method, network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    names = method.prepare(network)
    trained = [item for item in network.named_parameters() if item[1].requires_grad]
    assert [name for name, _ in trained] == names  # in the network's order
    return trained


@torch.no_grad()
def test_the_output_stays_bit_for_bit(
    network: nn.Module, method: Method, pictures: Pictures
) -> None:
    base = copy.deepcopy(network)
    method.prepare(network)
    freeze_alike(base, network)
    assert torch.equal(pictures.predict(network), pictures.predict(base))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ADDING)
@torch.no_grad()
def test_the_output_stays_bit_for_bit_in_other_types(
    network: nn.Module, name: str, pictures: Pictures, dtype: torch.dtype
) -> None:
    base = copy.deepcopy(network.to(dtype))
    OWN[name].prepare(network)
    freeze_alike(base, network)
    assert torch.equal(pictures.predict(network), pictures.predict(base))


def freeze_alike(base: nn.Module, network: nn.Module) -> None:
    """Freeze in diffusers' U-Net what is frozen in a prepared one.

    Its attention multiplies a transposed image by weights; torch's matmul then takes another kernel
    for weights that have no gradient, even where none is asked for.
    """
    if isinstance(base, DiffusersUNet):
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(network.get_parameter(name).requires_grad)


@pytest.mark.parametrize("name", ADDING)
@torch.no_grad()
def test_the_output_stays_bit_for_bit_under_autocast(
    network: nn.Module, name: str, pictures: Pictures
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        base = copy.deepcopy(network)
        OWN[name].prepare(network)
        freeze_alike(base, network)
        before, after = pictures.predict(base), pictures.predict(network)
    assert after.dtype == before.dtype
    assert torch.equal(after, before)


def test_only_what_trains_has_gradients_and_changes(
    network: nn.Module, method: Method, pictures: Pictures
) -> None:
    names = method.prepare(network)
    before = {name: each.detach().clone() for name, each in network.named_parameters()}
    (pictures.predict(network) - pictures.noise).square().mean().backward()
    with_gradient = [name for name, each in network.named_parameters() if each.grad is not None]
    assert with_gradient == names
    pictures.train(network, names)
    changed = [
        name for name, each in network.named_parameters() if not torch.equal(each, before[name])
    ]
    assert changed == names


def test_merged_is_plain_and_gives_the_same(
    network: nn.Module, method: Method, pictures: Pictures
) -> None:
    plain = {name: value.shape for name, value in network.state_dict().items()}
    kind, reprs = type(network), repr(network)
    base = pictures.predict(network).detach()
    pictures.train(network, method.prepare(network))
    unmerged = pictures.predict(network).detach()
    assert (unmerged - base).norm() > 0.05 * base.norm()  # else the comparison below says nothing
    merged = method.merge(network)
    assert merged is network
    assert type(merged) is kind
    assert repr(merged) == reprs
    state = merged.state_dict()
    assert {name: value.shape for name, value in state.items()} == plain
    assert list(state) == list(plain)
    assert not any(module._forward_hooks for module in merged.modules())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    error = (pictures.predict(merged) - unmerged).norm() / unmerged.norm()
    assert error < 1e-5
    again = pictures.predict(method.merge(merged))  # what is plain stays as it is
    assert torch.equal(again, pictures.predict(merged))


def test_saved_is_what_trains_and_loads_again(
    network: nn.Module, method: Method, pictures: Pictures
) -> None:
    other = copy.deepcopy(network)
    names = method.prepare(network)
    pictures.train(network, names)
    saved = method.saved(network)
    statistics = layout_of(network).statistics
    assert list(saved) == [*names, *statistics]
    assert not any(tensor.requires_grad for tensor in saved.values())
    method.prepare(other)
    method.load(other, saved)
    assert torch.equal(pictures.predict(other), pictures.predict(network))


@pytest.mark.parametrize("name", ADDING)
def test_a_copy_of_a_prepared_network_is_one_of_its_own(
    network: nn.Module, name: str, pictures: Pictures
) -> None:
    method = OWN[name]
    pictures.train(network, method.prepare(network))
    trained = pictures.predict(network)
    twin = copy.deepcopy(network)
    assert torch.equal(pictures.predict(twin), trained)
    method.merge(twin)
    assert torch.equal(pictures.predict(network), trained)


def test_loading_refuses_what_is_not_its_own() -> None:
    method, network = DiffFit(), build("dit")
    method.prepare(network)
    saved = method.saved(network)
    first = next(iter(saved))
    with pytest.raises(CheckpointError, match=f"lacks {first}"):
        method.load(network, {name: saved[name] for name in saved if name != first})
    with pytest.raises(CheckpointError, match=r"holds, beside .* blocks\.0\.attn\.qkv\.weight"):
        method.load(network, {**saved, "blocks.0.attn.qkv.weight": torch.zeros(48, 16)})
    with pytest.raises(CheckpointError, match=r"shape \(3,\), the model's \(16,\)"):
        method.load(network, {**saved, first: torch.zeros(3)})
    other = build("dit")
    BitFit().prepare(other)
    with pytest.raises(CheckpointError, match="holds, beside"):
        BitFit().load(other, saved)


def test_a_table_that_is_not_there_changes_nothing() -> None:
    network = DiT(8, 1, 1, hidden_size=16, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match="has no class table, so class-table changes nothing"):
        ClassTableTuning().prepare(network)
    assert "x_embedder.proj.bias" in BitFit().prepare(network)


def test_normalisations_that_cannot_have_weights_are_named() -> None:
    network = build("own")
    network.norms = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(ConfigError, match="changes nothing in OwnNetwork: it has no normalisa"):
        NormTuning().prepare(network)
    network.norms[1] = nn.RMSNorm((8, 8), elementwise_affine=False)
    with pytest.raises(ConfigError, match=r"its normalisations \(RMSNorm\) cannot have weights"):
        NormTuning().prepare(network)


@pytest.mark.parametrize(
    ("blocks", "count", "chosen"),
    [
        ("half", 3, [0, 1]),
        ("half", 28, list(range(14))),
        ("all", 2, [0, 1]),
        ("none", 2, []),
        ([2, 0, -1], 3, [0, 2]),
        ([], 3, []),
    ],
)
def test_blocks_are_chosen(blocks: str | list[int], count: int, chosen: list[int]) -> None:
    assert choose_blocks(blocks, count) == chosen


def test_the_last_blocks_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"has 3 blocks, so its last 4 cannot be trained"):
        LastLayers(blocks=4).prepare(build("dit"))
    with pytest.raises(ConfigError, match="0 or more: -1"):
        LastLayers(blocks=-1)


def test_options_are_checked_where_they_are_written() -> None:
    assert METHODS.build("diffit", blocks=[0, 1]) == DiffFit(blocks=[0, 1])
    for blocks in ("first", 3, [0, "1"], [True]):
        with pytest.raises(ConfigError, match="write all, half, none, or a list of numbers"):
            METHODS.build("diffit", blocks=blocks)
    with pytest.raises(ConfigError, match="no setting 'block'"):
        METHODS.build("diffit", block="all")


def test_fixed_parameters_never_train() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(3))
            self.layer = nn.Linear(3, 3)

    @LAYOUTS.register(class_path(Positioned))
    def layout(network: nn.Module) -> Layout:
        return build_layout(network, blocks=[], modules={}, fixed=["positions"])

    network = Positioned()
    assert FullTuning().prepare(network) == ["layer.weight", "layer.bias"]
    FullTuning().merge(network)
    assert not network.positions.requires_grad
    with pytest.raises(ConfigError, match="names no output layer"):
        LastLayers().prepare(network)
    with pytest.raises(ConfigError, match="no place for scale vectors in Positioned"):
        DiffFit().prepare(network)
