"""``genlab doctor``."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

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
