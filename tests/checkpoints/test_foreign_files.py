"""Official files of unusual kinds, files that hold no network, and damaged ones: one sentence."""

import os
import pickle
import runpy
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import genlab
from genlab.checkpoints.readers.biggan import discriminator_network, generator_network
from genlab.checkpoints.readers.edm_pickle import read_pickle
from genlab.checkpoints.readers.guided_diffusion_config import parse
from genlab.checkpoints.weights import build_network, read_state_dict
from genlab.errors import CheckpointError, ConfigError, GenLabError
from genlab.networks import BigGANDeepGenerator, BigGANDiscriminator


@pytest.fixture(scope="module")
def cases(shared: Path) -> Path:
    folder = shared / "cases" / "checkpoints"
    if not folder.is_dir():
        pytest.skip("no cases of checkpoints")
    return folder


def refused(path: Path, format_: str | None = None, config: Any = None) -> str:
    with pytest.raises(GenLabError) as caught:
        genlab.convert(path, format_, config)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    return message


# BigGAN: what the shapes tell of a network, and what only the config does.


def test_thin_discriminator(cases: Path) -> None:
    """D_wide=False narrows a block at its first convolution."""
    expected = torch.load(cases / "biggan-expected.pth")["thinD"]
    product: Any = genlab.convert(cases / "biggan-thin-D.pth")
    with torch.no_grad():
        logits = product.network(expected["out"], expected["y"])
    torch.testing.assert_close(logits, expected["dl"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_width_of_discriminators(size: int, wide: bool) -> None:
    network = BigGANDiscriminator(size, num_classes=3, channels=4, wide=wide)
    found: Any = discriminator_network(network.state_dict())
    assert found.config["wide"] is wide
    assert found.config["img_resolution"] == size


def test_deep_generator_of_another_depth(cases: Path) -> None:
    file = cases / "biggan-deep-depth1-G.pth"
    assert "G_depth=2, the official default; give G_depth=1 in the config" in refused(file)
    expected = torch.load(cases / "biggan-expected.pth")["deep1_C10"]
    product: Any = genlab.convert(file, config={"G_depth": 1})
    network = product.network
    with torch.no_grad():
        images = network(expected["z"], network.embed_labels(expected["y"]))
    torch.testing.assert_close(images, expected["out"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "depth"), [(32, 1), (32, 3), (64, 1), (64, 3), (128, 4)])
def test_every_depth_is_named(size: int, depth: int) -> None:
    network = BigGANDeepGenerator(size, num_classes=3, channels=2, depth=depth, dim_z=4)
    state = network.state_dict()
    with pytest.raises(ConfigError, match=rf"G_depth=2, the official default; .*G_depth={depth}"):
        generator_network(state, where="G.pth")
    assert generator_network(state, {"G_depth": depth}).config["depth"] == depth
    with pytest.raises(ConfigError, match=rf"G_depth=7; give .*G_depth={depth}"):
        generator_network(state, {"G_depth": 7})


def test_cross_replica_is_refused_by_its_name(cases: Path) -> None:
    assert "cross_replica=True" in refused(cases / "biggan-cross-replica-G.pth")


@pytest.mark.parametrize(
    ("setting", "attention"), [("G_attn=32", [32]), ("G_attn=32_64", [32, 64]), ("G_attn=0", [])]
)
def test_resolutions_of_attention_on_the_command_line(setting: str, attention: list[int]) -> None:
    from genlab.checkpoints.arguments import read_arguments

    network = BigGANDeepGenerator(
        64, num_classes=2, channels=8, dim_z=4, attn_resolutions=attention
    )
    given = read_arguments(None, [setting])
    assert generator_network(network.state_dict(), given).config["attn_resolutions"] == attention
    if attention == [32, 64]:  # what YAML makes of it in a file
        with pytest.raises(ConfigError, match="in quotes"):
            generator_network(network.state_dict(), {"G_attn": 3264})


# guided-diffusion: flags as the official parser reads them.


@pytest.mark.parametrize("value", [8, "8", "8,", [1], "8,4", [1, 2]])
def test_attention_resolutions(value: Any, shared: Path) -> None:
    case = shared / "golden" / "adm_unet_new_order"
    if not case.is_dir():
        pytest.skip("no golden case")
    state = load_file(case / "weights.safetensors")
    model = parse(
        {"image_size": 8, "num_heads": 2, "attention_resolutions": value}, state, "model.pt"
    )
    both = value in ("8,4", [1, 2])
    assert model.network["attn_resolutions"] == ([8, 4] if both else [8])
    with pytest.raises(ConfigError, match="numbers with commas or a list"):
        parse({"image_size": 8, "num_heads": 2, "attention_resolutions": "a"}, state, "model.pt")


# Files beside a network's.


def test_training_state_of_edm(cases: Path, tmp_path: Path) -> None:
    data = (cases / "edm-training-state-000100.pt").read_bytes()
    for name, wanted in {
        "training-state-000100.pt": "network-snapshot-000100.pkl",
        "edm-training-state-000007.pt": "network-snapshot-000007.pkl",
        "mine.pt": "network-snapshot-*.pkl",
    }.items():
        (tmp_path / name).write_bytes(data)
        for format_ in (None, "edm"):
            config = {"img_resolution": 8, "img_channels": 1} if format_ else None
            message = refused(tmp_path / name, format_, config)
            assert f"give {wanted} beside it" in message
            assert "there is" not in message
    (tmp_path / "network-snapshot-000100.pkl").touch()
    assert "there is network-snapshot-000100.pkl" in refused(tmp_path / "mine.pt")


def optimizer_state() -> dict[str, Any]:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("G_optim.pth", "G_ema.pth"),
        ("D_optim_best0.pth", "G_ema.pth"),
        ("opt010000.pt", "ema_0.9999_010000.pt"),
        ("optimizer.bin", "the file of the network itself"),
        ("mine.pth", "the file of the network itself"),
    ],
)
@pytest.mark.parametrize("format_", [None, "dit", "biggan-pytorch"])
def test_optimizers(name: str, wanted: str, format_: str | None, tmp_path: Path) -> None:
    torch.save(optimizer_state(), tmp_path / name)
    message = refused(tmp_path / name, format_)
    assert "optimizer" in message
    assert wanted in message


@pytest.mark.parametrize("name", ["state_dict.pth", "state_dict_best0.pth", "x.pth"])
def test_counters_of_a_biggan_run(name: str, tmp_path: Path) -> None:
    content = {"itr": 5, "epoch": 0, "save_num": 1, "save_best_num": 0, "best_IS": 1, "best_FID": 9}
    torch.save(content, tmp_path / name)
    torch.save({"w": torch.ones(1)}, tmp_path / "G_ema.pth")
    message = refused(tmp_path / name)
    assert "counters of a BigGAN-PyTorch run" in message
    assert "there is G_ema.pth" in message


def test_whole_training_checkpoints_are_no_optimizers(tmp_path: Path) -> None:
    """Their optimizer stands beside weights, which are what is read."""
    weights = {"layer.weight": torch.ones(2, 2)}
    torch.save({"ema": weights, "opt": optimizer_state()}, tmp_path / "0050000.pt")
    assert list(read_state_dict(tmp_path / "0050000.pt")) == ["layer.weight"]
    assert "optimizer" not in refused(tmp_path / "0050000.pt")


@pytest.mark.parametrize(
    "names",
    [
        ("causal_conv.weight", "label_embedding.weight"),
        ("0.weight", "0.mask"),
        ("Conv2d_1.mask", "Conv2d_1.weight"),
        ("layers.0.v_to_h.weight", "layers.0.vstack.weight"),
        ("net.masked_conv.weight", "net.out.weight"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pixelcnns_of_other_repositories(
    names: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    file = tmp_path / f"model{suffix}"
    state = {name: torch.ones(2) for name in names}
    save: Any = torch.save if suffix == ".pt" else save_file
    save(state, file)
    for format_ in (None, "pixelcnn++", "gated-pixelcnn"):
        message = refused(file, format_)
        assert "pclucas14/pixel-cnn-pp" in message
        assert "ritheshkumar95/pytorch-vqvae" in message


# Damaged and forged files.


def test_numbers_of_other_kinds(cases: Path, tmp_path: Path) -> None:
    assert "(quantized), which no network" in refused(
        cases / "dit-quantized.pt", "dit", {"num_heads": 2}
    )
    for dtype in (torch.complex64, torch.uint16, torch.float8_e8m0fnu):
        file = tmp_path / "w.safetensors"
        save_file({"w": torch.zeros(4).to(dtype)}, file)
        with pytest.raises(CheckpointError, match=r"holds w as \w+, which no network"):
            read_state_dict(file)
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float64):
        save_file({"w": torch.ones(4).to(dtype)}, file)
        assert torch.equal(read_state_dict(file)["w"], torch.ones(4))


def test_tensors_without_rows(cases: Path) -> None:
    assert "holds no numbers of blocks.0.mlp.fc1.weight, a tensor of [0, 16]" in refused(
        cases / "dit-zero-rows.pt", "dit", {"num_heads": 2}
    )
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(0)}
    with pytest.raises(
        CheckpointError, match=r"^w\.pt holds no numbers of bias, a tensor of \[0\]"
    ):
        build_network(torch.nn.Linear, {"in_features": 2, "out_features": 2}, state, "w.pt")


def test_flags_of_a_file_without_rows(shared: Path) -> None:
    case = shared / "golden" / "adm_unet_new_order"
    if not case.is_dir():
        pytest.skip("no golden case")
    state = load_file(case / "weights.safetensors")
    state["time_embed.0.weight"] = torch.zeros(8, 0)
    with pytest.raises(CheckpointError, match=r"model\.pt has no usable time_embed\.0\.weight"):
        parse({"image_size": 8, "num_heads": 2}, state, "model.pt")


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x02", b"PK\x03\x04", b"\x00" * 64, b"(" * 99]
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.pkl", "w.bin"])
def test_stumps_of_files(data: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    for format_ in ("dit", "biggan-pytorch", "edm", None):
        config = {"img_resolution": 8, "img_channels": 1} if format_ == "edm" else None
        assert str(tmp_path / name) in refused(tmp_path / name, format_, config)


def test_one_byte_in_the_older_format(cases: Path) -> None:
    assert "is cut short or damaged" in refused(cases / "legacy-1-byte.pt", "dit")


HOSTILE = "\x1b]0;pwned\x07\x1b[31mKEY\nsecond line" + "x" * 2_000_000


def test_names_in_files_reach_no_terminal(cases: Path, tmp_path: Path) -> None:
    refused(cases / "dit-escape.pt", "dit")
    for content in (
        {HOSTILE: 1},
        {HOSTILE: torch.ones(1), "b": torch.ones(2)},
        {"x_embedder.proj.weight": torch.ones(1), HOSTILE: torch.zeros(0)},
        {"state_dict": {HOSTILE: torch.ones(1, dtype=torch.complex64)}},
    ):
        torch.save(content, tmp_path / "w.pt")
        for format_ in ("dit", "gated-pixelcnn", "biggan-pytorch"):
            refused(tmp_path / "w.pt", format_)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({HOSTILE: 1}))
    refused(tmp_path / "w.pkl")


def walk_bomb(names: int, letters: int) -> bytes:
    """A network of 4,900 modules that are one: a record of many names, or of long ones."""

    def text(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def call(module: str, name: str) -> bytes:
        return text(module) + text(name) + b"\x93"

    def module(cls: str, state: bytes) -> bytes:
        metadata = {"type": text("class"), "version": b"K\x06", "module_src": text(""),
                 "class_name": text(cls), "state": state}  # fmt: skip
        body = b"".join(text(key) + value for key, value in metadata.items())
        reconstruct = call("torch_utils.persistence", "_reconstruct_persistent_obj")
        return reconstruct + b"}(" + body + b"u\x85R"

    def mapping(items: list[bytes]) -> bytes:
        parts = (b"(" + b"".join(items[i : i + 1000]) + b"u" for i in range(0, len(items), 1000))
        return b"}" + b"".join(parts)

    inner = [text("n" * letters + str(number)) + b"N" for number in range(names)]
    shared = module("Block", b"}" + text("_parameters") + mapping(inner) + b"s") + b"q\x01"
    modules = mapping([text(f"m{number}") + b"h\x01" for number in range(4900)])
    root = module("EDMPrecond", b"}" + text("_modules") + modules + b"s")
    return b"\x80\x04" + shared + b"0}" + text("ema") + root + b"s."


@pytest.mark.parametrize(("names", "letters"), [(2000, 1), (20, 50_000)])
def test_shared_records_are_paid_for(
    names: int, letters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genlab.checkpoints.pickles.machine.MAX_WORK", 100_000)
    file = tmp_path / "walk.pkl"
    file.write_bytes(walk_bomb(names, letters))
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="takes more work than any network file"):
        read_pickle(file)
    assert time.process_time() - begun < 10


# The script leaves its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_walk_bomb_of_the_cases(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, file = cases / "make_walk_bomb.py", tmp_path / "walk.pkl"
    monkeypatch.setattr(sys, "argv", [str(script), "2000", str(file)])
    runpy.run_path(str(script))
    begun = time.process_time()
    assert "takes more work than any network file" in refused(file)
    assert time.process_time() - begun < 20


def test_special_files_are_not_read(tmp_path: Path) -> None:

    os.mkfifo(tmp_path / "w.pt")
    os.mkfifo(tmp_path / "w.pkl")
    for name, format_ in (("w.pt", None), ("w.pt", "dit"), ("w.pkl", "edm")):
        assert "neither a file nor a folder" in refused(tmp_path / name, format_)
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / "config.json")
    refused(tmp_path / "m")
