"""``genlab zoo``."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from network_pickles import official_weights, write_network
from range_server import serving

import genlab
from genlab import cli

NAME = "edm-cifar10-32x32-cond-vp"


def zoo(*args: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["zoo", *args])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_list(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zoo("list", capfd=capfd)
    assert code == 0
    line = next(line for line in out.splitlines() if NAME in line)  # one line a model, in a pipe
    for fact in (
        "CIFAR-10",
        "3x32x32",
        "CC BY-NC-SA 4.0, non-commercial",
        "FID 1.79",
        "not pulled",
    ):
        assert fact in line
    assert zoo(capfd=capfd)[1] == out


def test_list_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zoo("list", "--json", capfd=capfd)
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows[NAME]["state"] == "not pulled"
    from genlab.checkpoints.bundled import bundled_names

    assert [n for n, row in rows.items() if row["state"] == "bundled"] == bundled_names()


def test_listing_needs_no_torch() -> None:
    code = "import sys; from genlab.cli import main; main(['zoo']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_show(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = zoo("show", "edm-imagenet-64x64-cond-adm", capfd=capfd)
    assert code == 0
    for fact in (
        "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-imagenet-64x64-cond-adm.pkl",
        "commercial_use: false",
        "the first download is trusted",
        "S_churn: 40",
        "511 evaluations",
    ):
        assert fact in out
    code, out, _ = zoo("show", NAME, "--json", capfd=capfd)
    metadata = json.loads(out)
    assert metadata["config"]["label_dim"] == 10
    assert metadata["scores"][0]["value"] == 1.79


def test_pull_list_and_pull_again(
    tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kwargs, weights = official_weights("EDMPrecond", img_resolution=32, label_dim=10)
    with serving() as server:
        file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs)
        server.files[f"/{NAME}.pkl"] = file.read_bytes()
        code, out, err = zoo("pull", NAME, "--base-url", server.url, capfd=capfd)
        assert code == 0, err
        assert "licence CC BY-NC-SA 4.0: no commercial use" in err
        assert "no checksum is published" in err
        assert f"use it as '{NAME}'" in out
        code, out, _ = zoo("pull", NAME, "--base-url", server.url, capfd=capfd)
        assert (code, len(server.requests)) == (0, 1)
        assert "is there already" in out
    rows = {row["name"]: row for row in json.loads(zoo("list", "--json", capfd=capfd)[1])}
    assert rows[NAME]["state"] == "pulled"
    generator: Any = genlab.load(NAME)
    assert generator.class_names is not None


def test_bad_input(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        (["show", "edm-cifar"], "there is no model 'edm-cifar'"),
        (["pull", "edm-cifar10-32x32-cond-v"], f"did you mean '{NAME}'"),
        (["pull", NAME, "--base-url", "ftp://127.0.0.1/"], "only http and https addresses"),
    ):
        code, out, err = zoo(*args, capfd=capfd)
        assert (code, out) == (2, "")
        assert message in err
    with serving() as server:
        code, _, err = zoo("pull", NAME, "--base-url", server.url, capfd=capfd)
    assert code == 2
    assert "the server answers 404 Not Found" in err.splitlines()[-1]
    assert not (home / "zoo" / NAME).exists()
