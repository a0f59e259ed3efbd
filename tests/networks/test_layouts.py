"""What networks tell of their parts: every registered network, and DiT-XL/2's numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab.networks import BigGANDeepHF
from genlab.networks.base import DiffusionNetwork, Network
from genlab.networks.diffusers_dit import DiffusersDiT
from genlab.networks.diffusers_unet import DiffusersUNet
from genlab.networks.dit import DiT, DiT_XL_2
from genlab.networks.gan_base import DiscriminatorNetwork, GeneratorNetwork
from genlab.networks.layout import GROUPS, Layout
from genlab.training.objectives.base import NETWORKS

K = 3
UNET: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": K,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
DIT: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": K,
}
TINY_DIT: dict[str, Any] = {**DIT, "hidden_size": 8, "depth": 2, "num_heads": 2}
GAN: dict[str, Any] = {"img_resolution": 32, "num_classes": K, "channels": 8}
SIZES: dict[str, dict[str, Any]] = {
    "adm-classifier": {
        **{key: value for key, value in UNET.items() if key not in ("out_channels", "label_dim")},
        "num_classes": K,
    },
    "adm-unet": {**UNET, "num_head_channels": 32},
    "biggan-deep-discriminator": {**GAN, "attn_resolutions": [8], "depth": 1},
    "biggan-deep-generator": {**GAN, "dim_z": 6, "attn_resolutions": [8], "depth": 1},
    "biggan-discriminator": {**GAN, "attn_resolutions": [16]},
    "biggan-generator": {**GAN, "dim_z": 8, "attn_resolutions": [16]},
    "classifier-cnn": {
        "img_resolution": 8, "in_channels": 3, "num_classes": K, "channels": [8, 8],
    },
    "conditional-discriminator": {"img_resolution": 16, "num_classes": K, "channels": 4},
    "conditional-generator": {"img_resolution": 16, "num_classes": K, "channels": 4, "dim_z": 4},
    "song-unet": {**UNET, "augment_dim": 2},
    "dhariwal-unet": {**UNET, "channel_mult": [1, 2]},
    "dit": {**TINY_DIT, "num_streams": 2, "augment_dim": 2},
    "gated-pixelcnn": {
        "img_resolution": 8, "label_dim": K, "num_levels": 4, "channels": 4, "num_layers": 3,
        "head_channels": 8,
    },
    "pixelcnn++": {
        "img_resolution": 8, "in_channels": 1, "label_dim": K, "num_blocks": 1, "num_filters": 4,
        "num_mixtures": 2,
    },
}  # fmt: skip
VARIANTS: dict[str, Callable[[], Network]] = {
    "ncsn++": lambda: network_of(
        "song-unet", encoder_type="residual", decoder_type="skip", resample_filter=[1, 3, 3, 1]
    ),
    "adm added": lambda: network_of("adm-unet", scale_shift=False, resblock_updown=False),
    "adm spatial": lambda: network_of("adm-classifier", pool="spatial_v2"),
    "biggan tables": lambda: network_of(
        "biggan-generator", shared_embedding=False, hierarchical=False, spectral_norm=False
    ),
    "virtual": lambda: network_of("conditional-generator", norm="virtual"),
    "minibatch": lambda: network_of("conditional-discriminator", minibatch_kernels=2),
    "biggan hf": lambda: BigGANDeepHF(
        img_resolution=16, num_classes=K, channels=8, dim_z=5, attention_position=1,
        layers=[(True, 16, 8), (False, 8, 4), (True, 4, 2), (False, 2, 1)],
    ),
    "diffusers dit": lambda: DiffusersDiT(**TINY_DIT),
    "no null class": lambda: network_of("dit", null_class=False),
    "unconditional": lambda: network_of("song-unet", label_dim=0),
    "diffusers unet": lambda: DiffusersUNet(
        8, label_dim=K,
        options={
            "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
            "attention_head_dim": 4, "resnet_time_scale_shift": "scale_shift",
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
    ),
}  # fmt: skip
"""What is not registered, and options that change what a network is made of."""


def network_of(name: str, **changes: Any) -> Any:
    return NETWORKS[name](**{**SIZES[name], **changes})


def published(name: str) -> bool:
    return name.startswith("dit-")


def build(name: str) -> Network:
    if name in VARIANTS:
        return VARIANTS[name]()
    if published(name):  # of its full size: its blocks differ in number and width only
        with torch.device("meta"):
            return NETWORKS[name](**{**DIT, "img_resolution": 32})  # type: ignore[return-value]
    return network_of(name)


@pytest.fixture(params=[*NETWORKS, *VARIANTS], scope="module", name="case")
def case_of(request: pytest.FixtureRequest) -> tuple[Network, Layout]:
    """A network in evaluation whose every weight matters, and its layout."""
    torch.manual_seed(0)
    network = build(request.param).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if network.layout().statistics:  # fresh ones fit the weights badly
            for _ in range(5):
                run(network.train())
    return network.eval(), network.layout()


def run(network: Network) -> Tensor:
    """The output for some images and classes."""
    config: Any = network.config
    torch.manual_seed(1)
    labels, size = torch.tensor([0, 2]), config.img_resolution
    if isinstance(network, GeneratorNetwork):
        return network(torch.randn(2, network.dim_z), network.embed_labels(labels))
    channels = config.get("in_channels") or config.img_channels
    x = torch.rand(2, channels, size, size) * 2 - 1
    if isinstance(network, DiffusionNetwork):
        augment = torch.ones(2, 2) if config.get("augment_dim") else None
        return network(x, torch.tensor([0.3, 2.0]), network.embed_labels(labels), augment)
    if "label_dim" in config or isinstance(network, DiscriminatorNetwork):
        return network(x, labels)
    return network(x, torch.tensor([3.0, 9.0])) if hasattr(network, "time_embed") else network(x)


def gradients(network: Network) -> dict[str, Tensor]:
    """Of a weighted sum of the output; zero where it does not depend on a parameter."""
    out = run(network)
    network.zero_grad()
    (out * torch.linspace(0.5, 1.5, out.numel()).view_as(out)).sum().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
    }


def test_every_network_has_the_same_groups_of_real_parameters(case: tuple[Network, Layout]) -> None:
    network, layout = case
    names = [name for name, _ in network.named_parameters()]
    assert tuple(layout.groups) == GROUPS
    for group in layout.groups.values():
        assert list(group) == [name for name in names if name in group], "in the network's order"
    assert layout.groups["bias"] == tuple(n for n in names if n.rpartition(".")[2] == "bias")
    assert layout.groups["last"]
    if isinstance(network, DiffusionNetwork):
        assert layout.groups["time"]


def test_norms_hold_what_the_group_norm_holds(case: tuple[Network, Layout]) -> None:
    network, layout = case
    held = [
        f"{path}.{name}"
        for path in layout.norms
        for name, _ in network.get_submodule(path).named_parameters(recurse=False)
    ]
    assert list(layout.groups["norm"]) == held
    of_norms = {p for p, m in network.named_modules() if "Norm" in type(m).__name__ or p == "bn"}
    of_norms -= {p for p, m in network.named_modules() if type(m).__name__.startswith("ConvNorm")}
    assert {p for p in of_norms if "WeightNorm" not in type(network.get_submodule(p)).__name__} == {
        *layout.norms
    }


def test_without_its_last_layers_output_a_branch_is_gone(case: tuple[Network, Layout]) -> None:
    """Then nothing inside the branches acts any more, and before all of it did."""
    network, layout = case
    if not layout.branches or next(network.parameters()).is_meta:
        return
    before = gradients(network)
    for kind in {branch.kind for branch in layout.branches}:
        inside = layout.groups[kind]
        assert inside
        assert not [name for name in inside if not before[name].any()]
        layers = [network.get_submodule(b.layer) for b in layout.branches if b.kind == kind]
        hooks = [m.register_forward_hook(lambda _, __, out: out * 0) for m in layers]
        after = gradients(network)
        for hook in hooks:
            hook.remove()
        assert not [name for name in inside if after[name].any()]
        outside = [n for n, g in after.items() if n not in inside and g.any()]
        assert outside, "the network goes on without them"


def test_branches_have_the_width_that_they_tell(case: tuple[Network, Layout]) -> None:
    network, layout = case
    for branch in layout.branches:
        layer = network.get_submodule(branch.layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        assert len(weight) == branch.width
        assert branch.block in layout.blocks
        assert branch.layer.startswith(f"{branch.block}.")
        if branch.gate is not None:
            assert branch.gate.stop - branch.gate.start == branch.width


@torch.no_grad()
def test_scale_vectors_multiply_their_branches(case: tuple[Network, Layout]) -> None:
    network, layout = case
    scales = [branch for branch in layout.branches if branch.scale is not None]
    if not scales or next(network.parameters()).is_meta:
        return
    names, before = list(network.state_dict()), run(network)

    def set_scales(value: Callable[[int], Tensor] | None) -> None:
        for branch in scales:
            assert branch.scale is not None
            path, _, name = branch.scale.rpartition(".")
            vector = None if value is None else nn.Parameter(value(branch.width))
            setattr(network.get_submodule(path), name, vector)

    set_scales(torch.ones)
    assert torch.equal(run(network), before)
    assert len(network.state_dict()) == len(names) + len(scales)
    set_scales(lambda width: torch.linspace(0.5, 1.5, width))
    scaled = run(network)
    set_scales(None)
    assert list(network.state_dict()) == names
    handles = []
    for branch in scales:
        factor = torch.linspace(0.5, 1.5, branch.width)
        if not isinstance(network.get_submodule(branch.layer), nn.Linear):
            factor = factor[:, None, None]
        if isinstance(network.get_submodule(branch.layer), nn.Conv1d):
            factor = factor[:, 0]
        handles.append(
            network.get_submodule(branch.layer).register_forward_hook(
                lambda _, __, out, factor=factor: out * factor
            )
        )
    torch.testing.assert_close(scaled, run(network), rtol=1e-4, atol=1e-5)
    for handle in handles:
        handle.remove()
    assert not torch.allclose(scaled, before, atol=1e-4)


def test_tables_have_a_row_for_each_class(case: tuple[Network, Layout]) -> None:
    network, layout = case
    config: Any = network.config
    is_classifier = "Classifier" in type(network).__name__
    has_classes = config.get("label_dim", K) > 0 and not is_classifier
    assert bool(layout.tables) == has_classes
    for table in layout.tables:
        layer = network.get_submodule(table.layer)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        assert weight.shape[table.axis] == K + table.null_row
        for vector in table.vectors:
            assert layer.get_buffer(vector).shape[-1] == K
    assert layout.groups["class"] == tuple(
        name
        for name, _ in network.named_parameters()
        if name in {f"{table.layer}.weight" for table in layout.tables}
    )


def test_all_that_depends_on_the_class_alone_is_in_a_table(case: tuple[Network, Layout]) -> None:
    """The weights of a class that no image has get no gradient: these are the tables' rows."""
    network, layout = case
    shows_all = network.config.get("norm") == "virtual"  # in the reference batch
    if not layout.tables or shows_all or next(network.parameters()).is_meta:
        return
    absent = {
        name: axis
        for name, gradient in gradients(network).items()
        for axis, size in enumerate(gradient.shape)
        if size in (K, K + 1) and gradient.any() and not gradient.select(axis, 1).any()
    }
    # Spectral normalisation: every row counts for sigma.
    told = {f"{t.layer}.weight": t.axis for t in layout.tables if not t.vectors}
    assert absent == told


def test_training_changes_the_statistics_and_no_other_buffer(case: tuple[Network, Layout]) -> None:
    network, layout = case
    if next(network.parameters()).is_meta:
        return
    buffers = dict(network.named_buffers())
    with torch.no_grad():
        for name in layout.statistics:
            if buffers[name].is_floating_point():
                buffers[name] *= 1.1  # the singular vector of a single row is found at once
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        run(network.train())
    network.eval()
    changed = {n for n, b in network.named_buffers() if not torch.equal(b, before[n])}
    assert changed == set(layout.statistics)


@pytest.fixture(scope="module")
def xl() -> DiT:
    """DiT-XL/2 of 101 classes over latents of 256x256 pixels, without memory."""
    with torch.device("meta"):
        return DiT_XL_2(img_resolution=32, in_channels=4, out_channels=8, label_dim=101)


def test_counts_of_dit_xl(xl: DiT) -> None:
    layout = xl.layout()
    sizes = {name: parameter.numel() for name, parameter in xl.named_parameters()}
    counts = {group: sum(sizes[name] for name in names) for group, names in layout.groups.items()}
    assert counts["bias"] == 489_632
    assert counts["class"] == 117_504
    assert len(layout.norms) == len(layout.modulated) == 57
    assert sum(sizes.values()) == 673_799_072  # the positions are a buffer
    assert len(layout.blocks) == 28
    assert len(layout.branches) == 56
    assert layout.tables[0].null_row
