"""What a user calls a base: names of all kinds, without weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import genlab
from genlab.checkpoints.bundled import bundled_folder, bundled_names
from genlab.checkpoints.zoo.catalogue import entries
from genlab.errors import CheckpointError, ConfigError, GenLabError, UnknownNameError
from genlab.finetuning.bases import ARCHITECTURES, base_of, resolve_base
from genlab.networks import DiT
from genlab.saving.models import own_config
from genlab.training.objectives.base import NETWORKS


def shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", [n for n in bundled_names() if not n.startswith("classifier")])
def test_bundled_models_are_what_loading_gives(name: str) -> None:
    base = resolve_base(name)
    generator = genlab.load(name)
    assert type(base.network) is type(generator.network)
    assert own_config(base.network) == own_config(generator.network)
    assert shapes(base.network) == shapes(generator.network)
    assert base.image_shape == generator.image_shape
    assert base.num_classes == generator.num_classes
    assert all(tensor.is_meta for tensor in base.network.state_dict().values())
    assert shapes(base_of(name, generator).network) == shapes(base.network)


def test_weights_are_not_read(tmp_path: Path) -> None:
    source = bundled_folder("dit-fmnist-s")
    (tmp_path / "network").mkdir()
    for path in ("model_index.json", "network/config.json"):
        (tmp_path / path).write_text((source / path).read_text())
    assert shapes(resolve_base(str(tmp_path)).network) == shapes(
        resolve_base("dit-fmnist-s").network
    )
    config = json.loads((tmp_path / "network" / "config.json").read_text())
    (tmp_path / "network" / "config.json").write_text(json.dumps({**config, "wings": 2}))
    with pytest.raises(CheckpointError, match=r"does not fit DiT .*wings"):
        resolve_base(str(tmp_path))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_those_of_the_papers(name: str) -> None:
    base = resolve_base(name)
    assert (base.image_shape, base.factor, base.num_classes) == ((4, 32, 32), 8, 1000)
    assert own_config(base.network)["out_channels"] == 8


# Numbers of the papers: Peebles and Xie 2023, Table 4 (with 1000 classes, in millions, positions
# of patches included, as their code counts them); Dhariwal and Nichol 2021, Table 4.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("DiT-S/2", 33), ("DiT-B/4", 131), ("DiT-L/8", 459), ("DiT-XL/2", 675), ("SiT-XL/2", 675),
     ("adm-imagenet-64x64", 296), ("adm-imagenet-128x128", 422), ("adm-imagenet-256x256", 554),
     ("adm-imagenet-512x512", 559), ("edm-imagenet-64x64-cond-adm", 296),
     ("edm-cifar10-32x32-cond-vp", 56)],
)  # fmt: skip
def test_sizes_are_those_published(name: str, millions: int) -> None:
    assert parameters(resolve_base(name).network) / 1e6 == pytest.approx(millions, abs=1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [("dit-xl-2-256x256", "DiT-XL/2"), ("dit-xl-2-512x512", "DiT-XL/2-512x512"),
     ("dit-xl2", "DiT-XL/2"), ("dit-s8", "dit-s/8"), ("sit-xl-2-256x256", "SiT-XL/2-256")],
)  # fmt: skip
def test_several_names_mean_one_network(one: str, other: str) -> None:
    assert shapes(resolve_base(one).network) == shapes(resolve_base(other).network)
    assert resolve_base(one).image_shape == resolve_base(other).image_shape


@pytest.mark.parametrize("name", NETWORKS)
def test_registered_networks_are_bases_or_refused(name: str) -> None:
    if any(word in name for word in ("classifier", "discriminator")):
        with pytest.raises(ConfigError, match="is no generator"):
            resolve_base(name)
        return
    base = resolve_base(name, num_classes=7)
    assert base.num_classes == 7
    assert all(tensor.is_meta for tensor in base.network.state_dict().values())


@pytest.mark.parametrize("name", entries())
def test_models_of_the_zoo_are_bases_or_refused_in_a_sentence(name: str) -> None:
    entry = entries()[name]
    if entry.config is None or entry.format.endswith("classifier"):
        with pytest.raises(GenLabError, match=rf"classifier|genlab zoo pull {re.escape(name)}"):
            resolve_base(name)
        return
    base = resolve_base(name)
    channels, size, _ = entry.image_shape
    assert base.image_shape[1] * base.factor == size
    assert base.factor > 1 or base.image_shape[0] == channels


@pytest.mark.parametrize("name", ["dit-fmnist-s", "edm-fmnist", "biggan-fmnist", "gated-pixelcnn"])
@pytest.mark.parametrize("count", [1, 3, 101])
def test_classes_are_counted_anew(name: str, count: int) -> None:
    before, after = resolve_base(name), resolve_base(name, num_classes=count)
    assert after.num_classes == count
    same = shapes(before.network) == shapes(after.network)
    assert same == (before.num_classes == count)


def test_a_base_can_lose_its_classes() -> None:
    assert resolve_base("dit-fmnist-s", num_classes=0).num_classes == 0
    with pytest.raises(ConfigError, match="one class"):
        resolve_base("biggan-fmnist", num_classes=0)


def test_the_resolution_of_a_transformer_changes_positions_alone() -> None:
    base, larger = resolve_base("DiT-B/4"), resolve_base("DiT-B/4", resolution=512)
    assert larger.image_shape == (4, 64, 64)
    assert parameters(larger.network) == parameters(base.network)
    assert own_config(larger.network)["position_resolution"] == 32
    assert resolve_base("dit-fmnist-s", resolution=64).image_shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("name", "options", "error", "named"),
    [
        ("dit-fmnst", {}, UnknownNameError, "did you mean 'dit-fmnist'"),
        ("DiT-XL/3", {}, UnknownNameError, "did you mean 'DiT-XL/8'"),
        ("DiT-XL/2-256x512", {}, UnknownNameError, "DiT-XL/2-256x512 is no published"),
        ("DiT-XL/2-300", {}, ConfigError, "choose a multiple of 16"),
        ("song-unett", {}, UnknownNameError, "did you mean 'song-unet'"),
        ("classifier-fmnist", {}, ConfigError, "is no generator"),
        ("/nowhere/model", {}, CheckpointError, "there is no file or folder"),
        ("nowhere.pt", {}, CheckpointError, "there is no file or folder"),
        ("edm-fmnist", {"resolution": 64}, ConfigError, "only a DiT or SiT can"),
        ("dit-fmnist-s", {"resolution": 31}, ConfigError, "choose a multiple of 4"),
    ],
)
def test_what_nobody_knows_is_named(
    name: str, options: dict[str, int], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        resolve_base(name, **options)


def test_an_official_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "DiT-tiny.safetensors"
    tiny = DiT(16, 4, 8, label_dim=5, hidden_size=384, depth=1, num_heads=6)
    state = {name: tensor.contiguous() for name, tensor in tiny.state_dict().items()}
    save_file(state, path)
    base = resolve_base(str(path))
    assert shapes(base.network) == shapes(tiny)
    assert all(tensor.is_meta for tensor in base.network.state_dict().values())
