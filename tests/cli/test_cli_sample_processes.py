"""``genlab sample`` in processes of its own: killed, launched twice, far from the checkout."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import free_port, start_all

from genlab.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(model: Path, out: Path, *more: str) -> list[str]:
    return [
        "sample", str(model), "-o", str(out), "--labels", "balanced", *more
    ]  # fmt: skip


def images(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.*") if p.is_file()}


def same(ours: Path, whole: Path) -> bool:
    """Whether two folders hold the same bytes, but for timings and the folder's own name."""

    def comparable(out: Path) -> dict[str, bytes]:
        files = images(out)
        manifest = json.loads(files["manifest.json"])
        manifest["spent"] = manifest["config"]["output"] = None
        return files | {"manifest.json": json.dumps(manifest).encode()}

    return comparable(ours) == comparable(whole)


@pytest.mark.parametrize("format_", ["png", pytest.param("npz", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tiny_model: Path, tmp_path: Path, format_: str
) -> None:
    options = ("--seeds", "0-499", "--steps", "2", "--format", format_, "-q", "batch_size=16")
    out = tmp_path / "killed"
    python = [sys.executable, "-m", "genlab", *command(tiny_model, out, *options)]
    process = subprocess.Popen(python, env=ENVIRONMENT)
    deadline = time.monotonic() + 300
    while len(list(out.rglob("img*.png"))) < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len([p for p in out.rglob("img*.png") if not p.name.startswith(".")])
    assert 20 <= done < 500
    assert not (out / "manifest.json").exists()
    assert main(command(tiny_model, out, *options)) == 0
    assert main(command(tiny_model, tmp_path / "whole", *options)) == 0
    assert same(out, tmp_path / "whole")
    assert not (out / ".genlab").exists()


OPTIONS = ("--seeds", "0-15", "--batch-size", "4", "--steps", "3", "--animation", "gif")


def test_two_processes_write_the_same_as_one(tiny_model: Path, tmp_path: Path) -> None:
    python = [sys.executable, "-m", "genlab", *command(tiny_model, tmp_path / "two", *OPTIONS)]
    processes = start_all(python)
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0].startswith("16 images in ")
    assert said[1] == ""
    assert main(command(tiny_model, tmp_path / "one", *OPTIONS)) == 0
    assert same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_accelerate_launch_writes_the_same_as_one(tiny_model: Path, tmp_path: Path) -> None:
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port", free_port(), "-m", "genlab",
    ]  # fmt: skip
    subprocess.run(
        [*launch, *command(tiny_model, tmp_path / "two", *OPTIONS)], env=ENVIRONMENT, check=True
    )
    assert main(command(tiny_model, tmp_path / "one", *OPTIONS)) == 0
    assert same(tmp_path / "two", tmp_path / "one")
