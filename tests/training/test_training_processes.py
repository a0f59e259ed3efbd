"""The command in processes of its own: killed, interrupted, several at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same, everything, train, write_config, write_slice

pytestmark = pytest.mark.slow

SETTINGS = ("output.state_minutes=0", "output.keep_states=3", "duration_kimg=1.6")
"""400 steps with a state after each: a kill at any moment has a good chance to hit a write."""


@pytest.fixture(scope="module")
def config(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder, write_slice(fashion_mnist, folder))


def start(config: Path, folder: Path, settings: Sequence[str] = SETTINGS) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "genlab", "train", str(config), *settings]
    return subprocess.Popen(
        [*command, "-o", str(folder), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    log = folder / "log.jsonl"
    for _ in range(6000):
        if log.exists() and log.read_text().count("\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


def test_killed_again_and_again_it_ends_the_same(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "whole", *SETTINGS)
    for lines in (40, 111, 230):
        process = start(config, tmp_path / "killed")
        wait_for_lines(tmp_path / "killed", lines, process)
        process.kill()
        process.communicate()
    process = start(config, tmp_path / "killed")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "going on with" in errors
    assert_same(everything(tmp_path / "whole"), everything(tmp_path / "killed"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    settings = ("output.state_minutes=60", "duration_kimg=100")
    process = start(config, tmp_path, settings)
    wait_for_lines(tmp_path, 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "the state is saved; the same command goes on" in errors
    assert "Traceback" not in errors
    assert int(everything(tmp_path)["step"]) >= 3


def test_two_processes_compute_what_one_does_in_two_rounds(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "one", "gradient_accumulation=2")
    # --multi_gpu is how accelerate starts several processes; --device cpu keeps them off the GPUs.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    ports = ["--main_process_port", "0", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, *launch, *ports, "--dynamo_backend", "no", "-m", "genlab", "train"]
    result = subprocess.run(
        [*command, str(config), "-o", str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    machine = json.loads((tmp_path / "two" / "machine.json").read_text())
    assert machine["hardware"].startswith("2 processes")
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert [step for step, _, _ in one["log"]] == [step for step, _, _ in two["log"]]
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            # The order of one addition; Adam divides small differences by small numbers.
            assert torch.allclose(value, two[key], rtol=1e-3, atol=1e-5), key
    losses = torch.tensor([[line[1] for line in run["log"]] for run in (one, two)])
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)
