"""``genlab convert``."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import official_weights, write_network
from safetensors.torch import save_file

import genlab
from genlab import DiffusionGenerator, cli
from genlab.diffusion.discrete import Discrete
from genlab.networks import DiT


def convert(*args: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["convert", *args])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    kwargs, tensors = official_weights("VPPrecond")
    save_file(tensors, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors", kwargs


def settings(kwargs: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in kwargs.items()]


def test_settings(
    weights: tuple[Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, kwargs = weights
    out = tmp_path / "model"
    code, said, err = convert(
        *(str(source), "-o", str(out), "cls=VPPrecond", *settings(kwargs)),
        *("--class-names", "cat, dog,owl", "--licence", "MIT"),
        capfd=capfd,
    )
    assert (code, err) == (0, "")
    assert "SongUNet" in said
    assert "3 x 8 x 8, 3 classes" in said
    generator: Any = genlab.load(out)
    assert generator.class_names == ("cat", "dog", "owl")
    assert generator.preconditioning.name == "vp"
    card = (out / "README.md").read_text()
    for fact in ("w.safetensors", hashlib.sha256(source.read_bytes()).hexdigest(), "Licence: MIT"):
        assert fact in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "w.safetensors"]


@pytest.mark.parametrize("name", ["c.json", "c.yaml"])
def test_config_file(
    name: str,
    weights: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """JSON is also YAML; settings go over the file's arguments, wherever it keeps them."""
    source, kwargs = weights
    config = tmp_path / name
    content = {"cls": "EDMPrecond", "kwargs": {**kwargs, "dropout": 0.9}}
    config.write_text(json.dumps(content))
    code, _, err = convert(
        *(str(source), "-o", str(tmp_path / "m"), "--config", str(config)),
        *("cls=VPPrecond", "dropout=0.25", "epsilon_t=1e-4"),
        capfd=capfd,
    )
    assert (code, err) == (0, "")
    generator: Any = genlab.load(tmp_path / "m")
    assert generator.network.config.dropout == 0.25
    assert generator.preconditioning.epsilon_t == 1e-4


def test_pickle_of_the_zoo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file with a name of the zoo gets the zoo's licence on its card."""
    kwargs, tensors = official_weights("EDMPrecond")
    source = write_network(
        tmp_path / "edm-cifar10-32x32-cond-vp.pkl", "EDMPrecond", tensors, kwargs
    )
    code, _, err = convert(str(source), "-o", str(tmp_path / "m"), capfd=capfd)
    assert (code, err) == (0, "")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in card
    assert "Commercial use: not allowed" in card


def test_folder_that_is_taken(
    weights: tuple[Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, kwargs = weights
    arguments = [str(source), "-o", str(tmp_path / "m"), "cls=VPPrecond", *settings(kwargs)]
    assert convert(*arguments, capfd=capfd)[0] == 0
    code, _, err = convert(*arguments, capfd=capfd)
    assert code == 2
    assert "holds a model already; choose another folder, or give --overwrite" in err
    assert convert(*arguments, "--overwrite", capfd=capfd)[0] == 0
    code, _, err = convert(str(source), "-o", str(tmp_path), capfd=capfd)
    assert code == 2
    assert "holds other files" in err


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch mark",)


BAD: list[tuple[list[str], str]] = [
    (["absent.pkl"], "there is no file absent.pkl; check the path"),
    (["w.safetensors"], "give the official constructor's arguments as config"),
    (["w.safetensors", "img_resolution=8"], "EDMPrecond needs img_channels"),
    (["w.safetensors", "img_resolution=[8"], "cannot read the settings"),
    (["w.safetensors", "img_resolutoin=8", "--format", "edm"], "did you mean 'img_resolution'"),
    (["w.safetensors", "--config", "absent.json"], "there is no file absent.json"),
    (["w.safetensors", "--config", "list.json"], "must hold a mapping of arguments, not a list"),
    (["w.safetensors", "--config", "broken.json"], "is no readable JSON or YAML"),
    (["w.safetensors", "--format", "ditt"], "no checkpoint format 'ditt'"),
    (["evil.pkl"], "evil.pkl asks for os.system"),
    (["cut.safetensors", "--format", "edm", "cls=VPPrecond", "@"], "is cut short or damaged"),
    (["w.safetensors", "cls=VPPrecond", "@", "--class-names", "a,b"], "2 class names for a model"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_input(
    args: list[str],
    message: str,
    weights: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One sentence, exit code 2, and nothing written."""
    monkeypatch.chdir(tmp_path)
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    Path("list.json").write_text("[1, 2]")
    Path("broken.json").write_text('{"a": [')
    Path("cut.safetensors").write_bytes(weights[0].read_bytes()[:-64])
    before = sorted(tmp_path.iterdir())
    whole = [part for arg in args for part in (settings(weights[1]) if arg == "@" else [arg])]
    code, out, err = convert(*whole, "-o", "model", capfd=capfd)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("genlab")
    assert sorted(tmp_path.iterdir()) == before


def test_folder_that_cannot_be_written(
    weights: tuple[Path, dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, kwargs = weights
    out = source / "model"  # below a file: not even root can
    code, _, err = convert(
        *(str(source), "-o", str(out), "cls=VPPrecond", *settings(kwargs)), capfd=capfd
    )
    assert code == 2
    assert str(out) in err
    assert err.count("\n") == 1


def test_folder_of_diffusers_and_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network: Any = DiT(4, 2, 4, 3, hidden_size=16, depth=1, num_heads=2)
    DiffusionGenerator(network, Discrete(variance="learned_range")).save_pretrained(tmp_path / "a")
    code, said, err = convert(
        *(str(tmp_path / "a"), "-o", str(tmp_path / "b"), "--to", "diffusers"), capfd=capfd
    )
    assert code == 0
    assert "DiT" in said
    assert "frequencies of its own" in err
    assert (tmp_path / "b" / "transformer" / "config.json").is_file()
    code, said, err = convert(str(tmp_path / "b"), "-o", str(tmp_path / "c"), capfd=capfd)
    assert (code, err) == (0, "")
    again: Any = genlab.load(tmp_path / "c")
    ours, back = network.state_dict(), again.network.state_dict()
    assert all(torch.equal(ours[name], back[name]) for name in ours if name != "pos_embed")
    code, _, err = convert(
        *("edm-fmnist", "-o", str(tmp_path / "d"), "--to", "diffusers"), capfd=capfd
    )
    assert code == 2
    assert "only DiTs" in err
