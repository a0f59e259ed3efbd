"""``genlab finetune``."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from omegaconf import OmegaConf
from small_finetunes import BASE, SETTINGS, write_photographs

from genlab import cli
from genlab.cli import main
from genlab.cli.completion import method_names
from genlab.finetuning.methods.base import METHODS

QUICK = (*SETTINGS, "data.fit=crop", "data.channels=1", "duration_kimg=0.008")


@pytest.fixture(scope="module")
def photographs(cifar_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(cifar_zip, tmp_path_factory.mktemp("data"))


def finetune(*arguments: object) -> int:
    return main(["finetune", *map(str, arguments), "--device", "cpu"])


def test_sixty_photographs_from_one_command(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my-model"
    assert finetune(BASE, "--method", "diffit", "--data", photographs, "-o", out, *QUICK) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}: 8 images, loss {printed.out.split()[-1]}\n"
    for line in (
        "dit-fmnist-s by diffit, learning rate 0.001, 2 steps of 4 images",
        "in all 12,592 1,063,216 1.184%",
        "images: 48x40 RGB (the first one) to 32x32 grey by data.fit=crop and data.channels=1",
        "new classes: cat, frog, ship: each begins as the mean of all classes",
        "note: 6 scale vectors stand in 3 of 6 blocks",
        "training into",
    ):
        assert line in " ".join(printed.err.split())
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "config.yaml"} <= {
        path.name for path in out.iterdir()
    }
    few = "sampler.schedule.num_steps=2"
    drawn = str(tmp_path / "drawn")
    assert main(["sample", str(out), "--classes", "ship", few, "-o", drawn, "--seeds", "0-1"]) == 0
    assert main(["adapter", "merge", str(out), "-o", str(tmp_path / "merged")]) == 0
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "This folder is an adapter" in (out / "README.md").read_text()
    assert "This folder is an adapter" not in card
    assert "| Base | dit-fmnist-s |" in card
    assert main(["train", "export", str(out), "-o", str(tmp_path / "plain")]) == 0
    pictures = str(tmp_path / "pictures")
    steps = "sampler.schedule.num_steps=2"
    assert (
        main(["sample", str(tmp_path / "plain"), "--classes", "ship", steps, "-o", pictures]) == 0
    )


def test_the_folder_alone_goes_on(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(BASE, "--data", photographs, "-o", tmp_path, *QUICK) == 0
    assert finetune("-o", tmp_path, "duration_kimg=0.012", "--json") == 0
    printed = capsys.readouterr()
    assert "going on with" in printed.err
    told = json.loads(printed.out.partition("\n")[2])
    assert (told["images"], told["steps"], told["signal"]) == (12, 3, None)
    assert told["trainable_parameters"] == 12592


def test_dry_run_prints_settings_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", BASE, "--method", "full", "--dry-run", "batch_size=8"]) == 0
    printed = capsys.readouterr()
    settings = OmegaConf.create(printed.out)
    assert (settings.optimizer.lr, settings.batch_size, settings.base) == (1e-4, 8, BASE)
    assert "100.000%" in printed.err
    assert "8 images at a time" in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "trainable"), [(None, 13264), (3, 12592), (101, 22000)])
def test_dry_run_counts_for_other_classes(
    count: int | None, trainable: int, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [] if count is None else ["--num-classes", str(count)]
    assert main(["finetune", BASE, *wanted, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trainable_parameters"] == trainable
    assert told["method"] == {"name": "diffit"}
    assert sum(group["trainable"] for group in told["groups"].values()) == trainable


def test_dry_run_looks_at_the_data(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["--data", str(photographs), "--dry-run", "--json"]
    assert main(["finetune", BASE, *told, "data.fit=crop", "data.channels=1"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"]["class"]["trainable"] == 4 * 96
    assert main(["finetune", BASE, *told]) == 2


def test_a_methods_preset_counts_however_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for named in (["--method", "full"], ["method=full"], ["method.name=full"]):
        assert main(["finetune", BASE, *named, "--dry-run"]) == 0
        assert OmegaConf.create(capsys.readouterr().out).optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "which MODEL?"),
        (["dit-fmnst", "--data", "DATA"], "did you mean 'dit-fmnist"),
        ([BASE], "data.path has no value"),
        ([BASE, "--data", "nowhere"], "there is no nowhere"),
        ([BASE, "--data", "DATA"], "data.fit=crop (or pad, resize) and data.channels=1"),
        ([BASE, "--data", "DATA", "--method", "diffitt"], "did you mean 'diffit'"),
        ([BASE, "--data", "DATA", "--num-classes", "4", *QUICK], "photographs has 3 (cat, frog"),
        ([BASE, "--data", "DATA", *QUICK, "method.blocks=[9]"], "there is no block 9"),
        ([BASE, "--data", "DATA", *QUICK, "class_names=[a]"], "class_names holds 1 names"),
        ([BASE, "--data", "DATA", *QUICK, "batch=3"], "there is no setting 'batch'"),
        ([BASE, "--data", "DATA", *QUICK, "--resolution", "31"], "multiple of 4"),
        ([BASE, "stray", "--data", "DATA"], "write KEY=VALUE"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    named: str,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert finetune(*(str(photographs) if each == "DATA" else each for each in arguments)) == 2
    errors = capsys.readouterr().err
    assert named in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_teaches_every_method() -> None:
    text = CliRunner().invoke(cli.genlab, ["finetune", "--help"]).output
    for name in METHODS:
        assert f"\n    {name} " in text
    assert "genlab finetune dit-fmnist --data my_images/" in text


def test_methods_are_completed() -> None:
    assert method_names() == METHODS.in_order()
