"""BigGAN's official files: what the shapes tell, and one clear sentence for everything broken."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import genlab
from genlab.checkpoints.conversion import guess_format
from genlab.checkpoints.readers.biggan import read_discriminator
from genlab.cli import main
from genlab.errors import CheckpointError, ConfigError
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANDiscriminator, BigGANGenerator
from genlab.networks.biggan_deep import BigGANDeepDiscriminator, BigGANDeepGenerator
from genlab.networks.biggan_deep_hf import BigGANDeepHF

CONFIG: dict[str, Any] = {"G_ch": 8, "dim_z": 10, "resolution": 32, "G_attn": "16"} | {
    "n_classes": 3,
    "shared_dim": 6,
    "hier": True,
}
HF_CONFIG: dict[str, Any] = {
    "output_dim": 16,
    "z_dim": 5,
    "channel_width": 4,
    "num_classes": 3,
    "layers": [[True, 16, 8], [False, 8, 4], [True, 4, 2], [False, 2, 1]],
    "attention_layer_position": 1,
    "n_stats": 5,
}
GENERATORS: dict[str, Callable[[], Any]] = {
    "hierarchical": lambda: BigGANGenerator(
        32, 3, channels=8, dim_z=8, shared_dim=6, attn_resolutions=(16,)
    ),
    "flat": lambda: BigGANGenerator(64, 3, channels=2, dim_z=7, hierarchical=False),
    "own batch norm": lambda: BigGANGenerator(
        32, 3, channels=4, dim_z=8, shared_embedding=False, hierarchical=False, num_svs=2,
        own_batch_norm=True,
    ),
    "not normalised": lambda: BigGANGenerator(32, 3, channels=4, dim_z=8, spectral_norm=False),
    "deep": lambda: BigGANDeepGenerator(
        64, 3, channels=4, dim_z=7, shared_dim=6, attn_resolutions=(8, 32), own_batch_norm=True
    ),
}  # fmt: skip
DISCRIMINATORS: dict[str, Callable[[], Any]] = {
    "wide": lambda: BigGANDiscriminator(64, 3, channels=8, attn_resolutions=(16,)),
    "narrow": lambda: BigGANDiscriminator(128, 3, channels=4, wide=False),
    "official table": lambda: BigGANDiscriminator(
        32, 3, channels=4, attn_resolutions=(16,), official_attention_table=True
    ),
    "deep": lambda: BigGANDeepDiscriminator(64, 3, channels=8, depth=3, attn_resolutions=(32,)),
}


def official_names(network: nn.Module) -> dict[str, Tensor]:
    """The state dict as BigGAN-PyTorch writes it."""
    state = network.state_dict()
    config: Any = network.config
    if config.get("own_batch_norm"):
        state = {name.replace(".stored_", ".bn.stored_"): value for name, value in state.items()}
        norms = [name for name in state if name.endswith(".bn.stored_mean")]
        state |= {n.replace("stored_mean", "accumulation_counter"): torch.zeros(1) for n in norms}
    return state


def hf_names(network: nn.Module) -> dict[str, Tensor]:
    """The state dict as Hugging Face's conversion writes it."""
    renamed = {}
    for name, value in network.state_dict().items():
        own = f"generator.{name}".replace("generator.embeddings", "embeddings")
        own = own.replace("generator.blocks", "generator.layers")
        own = re.sub(
            r"\.(bn|conv)([1-4])\.", lambda match: f".{match[1]}_{int(match[2]) - 1}.", own
        )
        own = re.sub(r"\.gain\.(?=weight|u$|v$)", ".scale.", own)
        own = re.sub(r"\.bias\.(?=weight|u$|v$)", ".offset.", own)
        own = own.replace("generator.bn.gain", "generator.bn.weight")
        own = re.sub(r"\.(theta|phi|g)\.", r".snconv1x1_\1.", own)
        own = own.replace(".o.", ".snconv1x1_o_conv.")
        own = re.sub(r"\.(u|v)$", r".weight_\1", own)
        if own.endswith(".weight") and not own.startswith(("embeddings", "generator.bn.")):
            own = own.replace(".weight", ".weight_orig")
        renamed[own] = value.reshape(1) if own.endswith("gamma") else value
    return renamed


def redrawn(network: Any) -> Any:
    """No two numbers alike, so that a wrong name cannot pass."""
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An official generator's file."""
    path = tmp_path / "G_ema.pth"
    torch.save(official_names(redrawn(GENERATORS["hierarchical"]())), path)
    return path


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_shapes_tell_the_generator(tmp_path: Path, name: str, ending: str) -> None:
    network = redrawn(GENERATORS[name]())
    path = tmp_path / f"G.{ending}"
    state = official_names(network)
    torch.save(state, path) if ending == "pth" else save_file(state, path)
    generator = genlab.convert(path)  # no format, no config
    assert isinstance(generator, GanGenerator)
    assert type(generator.network) is type(network)
    assert same(generator.network, network)
    assert not generator.network.training
    assert generator.sample([1]).shape == (1, *generator.image_shape)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_shapes_tell_the_discriminator(tmp_path: Path, name: str) -> None:
    network = redrawn(DISCRIMINATORS[name]())
    torch.save(network.state_dict(), tmp_path / "D.pth")
    read = read_discriminator(tmp_path / "D.pth")
    assert type(read) is type(network)
    assert same(read, network)


def test_what_is_given_wins(file: Path) -> None:
    network: Any = genlab.convert(
        file, config={"BN_eps": 1e-3, "SN_eps": 1e-6, "G_lr": 5e-5}
    ).network
    assert network.config["bn_eps"] == 1e-3
    assert network.blocks[0][0].bn1.eps == 1e-3
    assert network.linear.eps == 1e-6


def test_latent_is_rounded_down_as_officially(file: Path) -> None:
    network: Any = genlab.convert(file, config=CONFIG).network
    assert network.dim_z == 8, "10 numbers cannot be cut into 4 chunks"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"G_chs": 8}, "BigGAN's G has no argument 'G_chs'.*G_ch"),
        ({"D_ch": 8}, "BigGAN's G has no argument 'D_ch'"),
        ({"G_ch": "8"}, "G_ch of BigGAN's G must be a whole number"),
        ({"G_ch": 10**9}, "G_ch of BigGAN's G must be a whole number in 1 ... 4096"),
        ({"G_attn": "16,32"}, "G_attn .*joined by _"),
        ({"bottom_width": 7}, "bottom_width of BigGAN's G must be 4"),
        ({"norm_style": "gn"}, "norm_style"),
        ({"cross_replica": True}, "cross_replica"),
        ({"BN_eps": "small"}, "BN_eps .*a number"),
        ({"hier": 1}, "hier .*true or false"),
    ],
)
def test_wrong_arguments(file: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        genlab.convert(file, format="biggan-pytorch", config=config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"G_ch": 4096, "dim_z": 65536}, "does not fit: .*is needed"),
        ({"resolution": 512}, "does not fit: missing"),
        ({"resolution": 48}, "cannot be built.*48x48"),
        ({"hier": False}, "does not fit"),
    ],
)
def test_arguments_that_contradict_the_file(
    file: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        genlab.convert(file, format="biggan-pytorch", config=config)


def damaged(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing":
        del state["blocks.1.0.conv2.weight"]
    elif how == "unexpected":
        state["optimizer"] = torch.zeros(1)
    elif how == "shape":
        state["blocks.1.0.conv2.bias"] = torch.zeros(5)
    elif how == "scalars":
        state = {name: torch.zeros(()) for name in state}
    elif how == "empty":
        state = {name: torch.zeros(0, 0) for name in state}
    elif how == "other":
        state = {"weight": torch.zeros(3)}
    elif how == "block number":
        state["blocks.99999999999999999999.0.conv1.weight"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"missing: blocks\.1\.0\.conv2\.weight"),
        ("unexpected", "unexpected: optimizer"),
        ("shape", r"conv2\.bias is \[5\] where \[32\] is needed"),
        ("scalars", "shapes .* are those of no BigGAN"),
        ("empty", "."),
        ("other", "shapes .* are those of no BigGAN"),
        ("block number", "."),
    ],
)
@pytest.mark.parametrize("config", [None, CONFIG])
def test_damaged_generators(tmp_path: Path, how: str, message: str, config: Any) -> None:
    state = damaged(official_names(GENERATORS["hierarchical"]()), how)
    torch.save(state, tmp_path / "G.pth")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        genlab.convert(tmp_path / "G.pth", format="biggan-pytorch", config=config)


def test_cut_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        genlab.convert(file, format="biggan-pytorch")


def test_files_that_are_the_other_network(file: Path, tmp_path: Path) -> None:
    torch.save(DISCRIMINATORS["wide"]().state_dict(), tmp_path / "D.pth")
    with pytest.raises(CheckpointError, match="is a discriminator, which draws no images"):
        genlab.load(tmp_path / "D.pth")
    with pytest.raises(CheckpointError, match="is no discriminator of BigGAN"):
        read_discriminator(file)


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_discriminators_become_folders(kind: str, tmp_path: Path) -> None:
    network = DISCRIMINATORS[kind]()
    torch.save(network.state_dict(), tmp_path / "D.pth")
    made = genlab.convert(tmp_path / "D.pth")
    assert isinstance(made, GanDiscriminator)
    assert not made.is_calibrated
    assert main(["convert", str(tmp_path / "D.pth"), "-o", str(tmp_path / "D")]) == 0
    read = GanDiscriminator.from_pretrained(tmp_path / "D")
    weights = read.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert "genlab calibrate" in (tmp_path / "D" / "README.md").read_text()


def test_deep_needs_the_whole_latent(tmp_path: Path) -> None:
    torch.save(official_names(GENERATORS["deep"]()), tmp_path / "G.pth")
    with pytest.raises(ConfigError, match="hier=true"):
        genlab.convert(tmp_path / "G.pth", config={"G_depth": 2, "G_ch": 4, "hier": False})


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, BigGANDeepHF]:
    """A released generator's file, named as officially, without its config."""
    network = redrawn(
        BigGANDeepHF(16, 3, 4, 5, HF_CONFIG["layers"], attention_position=1, num_stats=5)
    )
    path = tmp_path / "biggan-deep-16-pytorch_model.bin"
    torch.save(hf_names(network), path, _use_new_zipfile_serialization=False)  # as in 2019
    return path, network


@pytest.mark.parametrize("name", ["biggan-deep-16-config.json", None])
def test_released_generator(released: tuple[Path, BigGANDeepHF], name: str | None) -> None:
    path, network = released
    if name is not None:
        path.with_name(name).write_text(json.dumps(HF_CONFIG))
    generator = genlab.convert(path, config=None if name else HF_CONFIG)
    assert isinstance(generator, GanGenerator)
    assert same(generator.network, network)
    assert generator.sampler.config["truncation"] == 1


def test_released_generator_without_config(released: tuple[Path, BigGANDeepHF]) -> None:
    with pytest.raises(ConfigError, match="beside the file as biggan-deep-16-config"):
        genlab.convert(released[0])


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, " " * 2_000_000])
def test_broken_config_beside_the_file(released: tuple[Path, BigGANDeepHF], content: str) -> None:
    released[0].with_name("biggan-deep-16-config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot be read|must be a JSON object"):
        genlab.convert(released[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer": []}, ConfigError, "no argument 'layer'.*layers"),
        ({"layers": [[True, 16]]}, ConfigError, "layers of BigGANConfig must be a list of values"),
        ({"layers": [[1, 16, 8]]}, ConfigError, "true or false, width"),
        ({"layers": [[True, 16, 8]] * 65}, ConfigError, "a list of 1 ... 64"),
        ({"n_stats": 51}, CheckpointError, r"\[5, 64\] where \[51, 64\] is needed"),
        ({"channel_width": 4096}, CheckpointError, "does not fit"),
        ({"attention_layer_position": 2}, CheckpointError, "does not fit"),
        ({"output_dim": 32}, CheckpointError, "cannot be built.*16x16"),
    ],
)
def test_wrong_config_of_a_released_generator(
    released: tuple[Path, BigGANDeepHF], changes: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        genlab.convert(released[0], format="biggan-deep-hf", config={**HF_CONFIG, **changes})


def test_formats_are_told_apart(file: Path, released: tuple[Path, BigGANDeepHF]) -> None:

    assert guess_format(file) == "biggan-pytorch"
    assert guess_format(released[0]) == "biggan-deep-hf"
