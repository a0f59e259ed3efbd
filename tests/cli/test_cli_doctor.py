"""``genlab doctor``."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import official_weights, write_network

import genlab
from genlab import cli


def doctor(*args: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["doctor", *args])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def as_json(*args: str, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code, out, err = doctor(*args, "--json", capfd=capfd)
    assert code == 0, err
    metadata: dict[str, Any] = json.loads(out)
    return metadata


def test_machine(capfd: pytest.CaptureFixture[str]) -> None:
    metadata = as_json(capfd=capfd)
    assert metadata["versions"]["torch"] == torch.__version__
    assert metadata["machine"]["cores"] >= 1
    assert {"float64", "float32"} <= set(metadata["devices"]["cpu"]["dtypes"])
    assert metadata["models"]["pulled"] == []
    assert metadata["models"]["cache folder"].endswith("cache")
    assert len(metadata["devices"]) == 1 + torch.cuda.device_count() + torch.mps.is_available()


def test_machine_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = doctor(capfd=capfd)
    assert code == 0
    for word in ("versions:", "devices:", "  torch ", "  cpu", "memory"):
        assert word in out


def test_checkpoint(capfd: pytest.CaptureFixture[str]) -> None:
    metadata = as_json("edm-fmnist", capfd=capfd)["checkpoint"]
    assert metadata["family"] == "diffusion"
    assert metadata["image shape"] == "1 x 32 x 32"
    assert metadata["classes"] == 10
    assert "sneaker" in metadata["class names"].lower()
    assert metadata["null class"] == "yes"
    assert len(metadata["weights sha256"]) == 64


def test_format_of_a_folder(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder of diffusers is told apart in test_cli_cases."""
    known = {"edm-fmnist": "model that comes with GenLab", str(tiny_model): "GenLab folder"}
    for name, expected in known.items():
        assert as_json(name, capfd=capfd)["checkpoint"]["format"] == expected


def test_missing_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = doctor(str(tmp_path / "none.pkl"), capfd=capfd)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "none.pkl" in err


def test_damaged_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(b"\x80\x04 not a network")
    code, _, err = doctor(str(path), capfd=capfd)
    assert code == 2
    assert "network.pkl" in err


def test_weights_of_gigabytes_are_told_by_their_shapes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of a network are never in memory all at once; its hash is the model's."""
    genlab.load("dit-fmnist-s").save_pretrained(tmp_path)
    devices = []
    load = genlab.load

    def watched(name: str) -> genlab.Generator:
        generator = load(name)
        devices.append(generator.device.type)
        return generator

    monkeypatch.setattr("genlab.load", watched)
    facts = as_json(str(tmp_path), capfd=capfd)["checkpoint"]
    assert devices == ["meta"]
    assert facts["weights sha256"] == load(str(tmp_path)).weights_sha256()


def test_an_official_file_has_the_hash_that_its_publisher_tells(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "network.pkl", "EDMPrecond", weights, arguments)
    facts = as_json(str(file), capfd=capfd)["checkpoint"]
    assert facts["file sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
