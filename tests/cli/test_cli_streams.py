"""Terminals, pipes and environments that are not as programs like them: output, or one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from genlab import cli
from genlab.cli.common import progress
from genlab.compute import usable_device
from genlab.errors import ConfigError
from genlab.runs.processes import join

GENLAB = [sys.executable, "-m", "genlab"]


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("genlab", " ".join(GENLAB), 1)],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def test_without_a_command_the_help_is_printed_line_by_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = cli.main([])
    captured = capfd.readouterr()
    help_text = cli.genlab.get_help(click.Context(cli.genlab, info_name="genlab"))
    assert code in (0, 2)  # as click has it, before 8.2 and since
    assert (captured.out + captured.err).strip().splitlines()[
        0
    ] == "Usage: genlab [OPTIONS] COMMAND [ARGS]..."
    assert len((captured.out + captured.err).splitlines()) >= len(help_text.splitlines()) > 20


@pytest.mark.parametrize(
    "line",
    [
        "genlab presets | head -1",
        "genlab zoo 2>&1 | head -1",
        "genlab presets 2>&1 | true",
        "genlab smaple 2>&1 | true",
    ],
)
def test_a_closed_pipe_ends_quietly(line: str) -> None:
    result = shell(f"set -o pipefail; {line}")
    assert "Traceback" not in result.stdout + result.stderr
    assert "Exception ignored" not in result.stdout + result.stderr
    assert result.stderr == ""
    assert result.returncode in (0, 1, 2)


@pytest.mark.parametrize("line", ["genlab presets >&-", "genlab presets >&- 2>&-"])
def test_no_output_at_all_is_none_of_our_business(line: str) -> None:
    result = shell(line)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_sentence() -> None:
    result = shell("genlab presets > /dev/full")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "genlab: no space left on device; free some space or choose another folder"
    ]


def test_a_terminal_of_few_letters_shows_similar_ones() -> None:
    result = shell("genlab leaderboard show --dataset fmnist", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert "fd v" in result.stdout  # the arrow of "lower is better"
    asked = shell("genlab presets list --json", PYTHONIOENCODING="ascii")
    assert json.loads(asked.stdout)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE must be a whole number, got 'abc'; unset it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0, and counts the processes; unset it"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and RANK is not set; unset it"),
        ({"RANK": "-1"}, "RANK must be a whole number, got '-1'"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost",
             "MASTER_PORT": "1"},
            "RANK is 2, and the 2 processes of WORLD_SIZE count from 0",
        ),
    ],
)  # fmt: skip
def test_an_environment_that_names_no_launch(
    environment: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"the environment variable {sentence}"):
        join()
    for name in environment:  # the cure
        monkeypatch.delenv(name)
    assert join().count == 1


@pytest.mark.parametrize("device", ["meta", "tpu", "cuda:99", "hpu", "privateuseone", "cpu:x"])
def test_a_device_that_does_not_compute_here_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot use the device '{device}': .*; 'genlab doctor'"):
        usable_device(device)
    with pytest.raises(ConfigError, match="cannot use the device"):
        join(device)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "edm-fmnist", "--device", "meta"],
        ["sample", "edm-fmnist", "device=meta"],
        ["eval", "edm-fmnist", "--device", "meta"],
        ["train", "edm-fmnist", "data.path=x", "--device", "meta"],
        ["finetune", "dit-fmnist", "--data", "x", "--device", "meta"],
        ["calibrate", "x", "--device", "meta"],
    ],
)
def test_every_command_refuses_such_a_device(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    _, err = capfd.readouterr()
    assert "cannot use the device 'meta'" in err
    assert len(err.splitlines()) == 1


def test_without_a_terminal_long_work_tells_how_far_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("genlab.cli.common.time.monotonic", lambda: now[0])
    with progress("sampling", 1000, done=200) as bar:
        for _ in range(80):
            now[0] += 1.5
            bar.advance(5)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "sampling: 300 of 1,000 (30%), 4 min left",
        "sampling: 400 of 1,000 (40%), 3 min left",
        "sampling: 500 of 1,000 (50%), 2 min left",
        "sampling: 600 of 1,000 (60%), 2 min left",
    ]
    with progress("training", 10, lines=False) as bar:
        now[0] += 1000
        bar.advance(5)
    assert capfd.readouterr().err == ""
