"""``genlab train`` and ``genlab train export``."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from genlab.cli import main
from genlab.config import load, preset_names
from genlab.training.config import TrainConfig

SMALL = (
    "network.model_channels=8",
    "network.channel_mult=[1]",
    "batch_size=4",
    "duration_kimg=0.008",
    "output.preview_count=4",
    "output.tensorboard=false",
    "sampler.schedule.num_steps=2",
)


@pytest.mark.parametrize("name", preset_names("train"))
def test_shipped_configurations_are_complete(name: str) -> None:
    config = load(TrainConfig, name, "train")
    assert config.num_steps > 0
    assert not Path(config.data.path).is_absolute()


def test_dry_run_prints_the_merged_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "edm-fmnist", "optimizer.lr=2e-3", "--dry-run"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed.optimizer.lr == 0.002
    assert printed.network.patch_size == 2
    assert not list(tmp_path.iterdir())


def test_train_and_export(
    fashion_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    settings = [f"data.path={fashion_mnist}", *SMALL]
    assert main(["train", "--config", "edm-fmnist", *settings, "-o", run, "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert f"{run}: 8 images, loss" in printed.out
    assert "training into" in printed.err
    assert main(["train", "export", run, "-o", out, "--fact", "Score=1", "--dtype", "float16"]) == 0
    assert "average by half-life after 8 images" in capsys.readouterr().out
    assert "| Score | 1 |" in (tmp_path / "out" / "README.md").read_text()
    assert main(["sample", out, "--seeds", "0-1", "-o", str(tmp_path / "pictures")]) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["edm-fmnst"], "did you mean 'edm-fmnist'"),
        (["mine.yaml"], "no such file"),
        (["edm-fmnist", "optimizer.lrr=1"], "did you mean 'lr'"),
        (["edm-fmnist", "batch_size=many"], "batch_size takes a whole number"),
        (["edm-fmnist", "stray"], "write KEY=VALUE"),
        (["edm-fmnist", "data.path=nowhere"], "nowhere"),
        (["batch_size=1"], "which CONFIG?"),
        (["export", "nowhere", "-o", "out"], "no training run"),
        (["export", "nowhere", "-o", "out", "--fact", "x"], "write NAME=TEXT"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    errors = capsys.readouterr().err
    assert named in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "CONFIG [KEY=VALUE]" in text
    assert "export" in text
