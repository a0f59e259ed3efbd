"""A fine-tuning run that was stopped, killed or shared ends where one does that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_finetunes import (
    BASE,
    SETTINGS,
    environment,
    everything_of,
    last_state,
    trainer_of,
    write_fmnist,
)
from tiny_runs import assert_same, stops_after

import genlab
from genlab.errors import TrainingError

WAYS = (
    ("diffit", ()),
    ("lora", ("method.dropout=0.1",)),
    ("vpt", ("method.tokens=4",)),
    ("class-table", ("classes.initial=random",)),
    ("full", ("gradient_accumulation=2",)),
)


@pytest.fixture(scope="module")
def fmnist(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fmnist(fashion_mnist, tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("method", "settings"), WAYS)
def test_a_run_that_was_told_to_stop_goes_on_bit_for_bit(
    method: str, settings: tuple[str, ...], fmnist: Path, tmp_path: Path
) -> None:
    trainer_of(fmnist, tmp_path / "whole", method, *settings).train()
    stopped = trainer_of(fmnist, tmp_path / "parts", method, *settings).train(stops_after(2))
    assert (stopped.signal, stopped.progress.step) == (signal.SIGTERM, 3)
    ended = trainer_of(fmnist, tmp_path / "parts", method, *settings).train()
    assert (ended.signal, ended.progress.step) == (None, 6)
    assert_same(everything_of(tmp_path / "whole"), everything_of(tmp_path / "parts"))


def test_previews_do_not_change_the_run(fmnist: Path, tmp_path: Path) -> None:
    trainer_of(fmnist, tmp_path / "plain", "diffit").train()
    preview = "output.preview_kimg=0.008"
    trainer_of(fmnist, tmp_path / "shown", "diffit", preview).train(stops_after(3))
    trainer_of(fmnist, tmp_path / "shown", "diffit", preview).train()
    assert_same(everything_of(tmp_path / "plain"), everything_of(tmp_path / "shown"))
    pictures = sorted((tmp_path / "shown" / "previews").glob("?????????.png"))
    assert [path.stem for path in pictures] == [
        "000000000", "000000008", "000000016", "000000024",
    ]  # fmt: skip


def test_a_convolutional_base_goes_on_bit_for_bit(fmnist: Path, tmp_path: Path) -> None:
    """Sampling lays convolutions out in another way: the run's own must not change for it."""
    settings = ("base=edm-fmnist", "duration_kimg=0.008", "batch_size=2", "output.preview_kimg=1")
    trainer_of(fmnist, tmp_path / "whole", "bitfit", *settings).train()
    trainer_of(fmnist, tmp_path / "parts", "bitfit", *settings).train(stops_after(1))
    trainer_of(fmnist, tmp_path / "parts", "bitfit", *settings).train()
    assert_same(everything_of(tmp_path / "whole"), everything_of(tmp_path / "parts"))


def test_a_run_goes_on_with_its_own_base_only(fmnist: Path, tmp_path: Path) -> None:
    base = genlab.load(BASE)
    base.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        next(base.network.parameters()).add_(1e-3)
    base.save_pretrained(tmp_path / "other")
    trainer_of(fmnist, tmp_path / "run", "diffit", "duration_kimg=0.012").train()
    with pytest.raises(TrainingError, match="its adapter fits no other; give that base"):
        trainer_of(fmnist, tmp_path / "run", "diffit", f"base={tmp_path / 'other'}")
    trainer = trainer_of(fmnist, tmp_path / "run", "diffit", f"base={tmp_path / 'same'}")
    assert trainer.progress.step == 3


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("bitfit", "method.name=diffit, now it is bitfit"),
        ("diffit", "classes.initial=mean, now it is random"),
    ],
)
def test_going_on_with_other_settings_is_refused(
    method: str, changed: str, fmnist: Path, tmp_path: Path
) -> None:
    trainer_of(fmnist, tmp_path, "diffit", "duration_kimg=0.004").train()
    other = ["classes.initial=random"] if "initial" in changed else []
    with pytest.raises(TrainingError, match=changed):
        trainer_of(fmnist, tmp_path, method, *other)


def test_a_state_of_other_parameters_is_refused(fmnist: Path, tmp_path: Path) -> None:
    for method in ("diffit", "bitfit"):
        trainer_of(fmnist, tmp_path / method, method, "duration_kimg=0.004").train()
    name = "network-network.safetensors"
    (last_state(tmp_path / "bitfit") / name).replace(last_state(tmp_path / "diffit") / name)
    with pytest.raises(TrainingError, match="does not fit this run"):
        trainer_of(fmnist, tmp_path / "diffit", "diffit")


def start(data: Path, folder: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "genlab", "finetune", BASE, "--data", str(data), *SETTINGS]
    return subprocess.Popen(
        [*command, *settings, "-o", str(folder), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    log = folder / "log.jsonl"
    for _ in range(6000):
        if log.exists() and log.read_text().count("\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals, code: int, fmnist: Path, tmp_path: Path
) -> None:
    settings = ("duration_kimg=0.8", "output.state_minutes=60")
    trainer_of(fmnist, tmp_path / "whole", "diffit", *settings).train()
    process = start(fmnist, tmp_path / "parts", *settings)
    wait_for_lines(tmp_path / "parts", 5, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert "the state is saved; the same command goes on" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "parts" / "adapter_model.safetensors").is_file()
    process = start(fmnist, tmp_path / "parts", *settings)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "going on with" in errors
    assert_same(everything_of(tmp_path / "whole"), everything_of(tmp_path / "parts"))


@pytest.mark.slow
def test_killed_again_and_again_it_ends_the_same(fmnist: Path, tmp_path: Path) -> None:
    settings = ("duration_kimg=0.8", "output.state_minutes=0", "output.snapshot_kimg=0.04")
    trainer_of(fmnist, tmp_path / "whole", "diffit", *settings).train()
    for lines in (20, 77, 140):
        process = start(fmnist, tmp_path / "killed", *settings)
        wait_for_lines(tmp_path / "killed", lines, process)
        process.kill()
        process.communicate()
    process = start(fmnist, tmp_path / "killed", *settings)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_same(everything_of(tmp_path / "whole"), everything_of(tmp_path / "killed"))


@pytest.mark.slow
def test_two_processes_compute_what_one_does_in_two_rounds(fmnist: Path, tmp_path: Path) -> None:
    trainer_of(fmnist, tmp_path / "one", "diffit", "gradient_accumulation=2").train()
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    ports = ["--main_process_port", "0", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, *launch, *ports, "--dynamo_backend", "no", "-m", "genlab"]
    finetune = ["finetune", BASE, "--data", str(fmnist), *SETTINGS]
    result = subprocess.run(
        [*command, *finetune, "-o", str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env=environment(),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("note: 6 scale vectors") == 1  # one process tells
    machine = json.loads((tmp_path / "two" / "machine.json").read_text())
    assert machine["hardware"].startswith("2 processes")
    one, two = everything_of(tmp_path / "one"), everything_of(tmp_path / "two")
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            # The order of one addition; Adam divides small differences by small numbers.
            assert torch.allclose(value, two[key], rtol=1e-3, atol=1e-5), key
