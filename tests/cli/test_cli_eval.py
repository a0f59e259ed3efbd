"""``genlab eval`` as users call it: what it prints, writes, and refuses."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import start_all

from genlab.cli import main
from genlab.data.writing.writers import write_npz

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
SETTINGS = ("extractor=tiny", "batch_size=16", "sampler.schedule.num_steps=2", "-q")


@pytest.fixture
def real(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(60, 200, (40, 8, 8, 3), dtype=np.uint8)
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, [i % 3 for i in range(40)])
    return tmp_path / "real.npz"


def genlab(*arguments: object) -> int:
    import tiny_extractor  # noqa: F401 - registers the extractor "tiny"

    return main([str(argument) for argument in arguments])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_a_model_is_scored_and_recorded(
    tiny_model: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board"
    code = genlab(
        "eval", tiny_model, "--reference", real, "--metrics", "fd,prdc", "--count", 40,
        "--dataset", "toys", "--name", "mine", "-o", board, *SETTINGS,
    )  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    assert "mine: 40 images against real, extractor tiny" in out
    assert "fd[tiny]" in out
    assert "precision[tiny]" in out
    (record,) = records(board)
    assert record["model"] == "mine"
    assert record["protocol"]["count"] == 40


def test_classes_that_are_compared_by_number_are_told(
    tiny_model: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's classes have names, and those of the npz have none."""
    board = tmp_path / "board"
    cas = "metrics=[{name: cas, kimg: 0.16, batch_size: 16, width: 8}]"
    told = ("eval", tiny_model, "--reference", real, "--count", 40, "--dataset", "toys")
    assert genlab(*told, "-o", board, cas, *SETTINGS) == 0
    said = "classes are compared with those of the reference by number: one side alone has names"
    assert said in capsys.readouterr().out
    (record,) = records(board)
    assert record["sampling"]["classes_by_number"] == ["the reference"]
    assert genlab(*told, "--metrics", "fd", "-o", tmp_path / "other", *SETTINGS) == 0
    assert said not in capsys.readouterr().out  # no class counts in this score


def test_dry_run_prints_the_merged_configuration(
    tiny_model: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert genlab("eval", tiny_model, "--reference", real, "--steps", 7, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "num_steps: 7" in out
    assert f"reference: {real}" in out


def test_images_are_scored_and_printed_as_json(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = genlab(
        "eval", real, "--reference", real, "--metrics", "fd", "--no-record", "--json",
        "-o", tmp_path / "board", *SETTINGS[:2], "-q",
    )  # fmt: skip
    assert code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["scores"]["fd[tiny]"]["value"] == pytest.approx(0, abs=1e-6)
    assert not (tmp_path / "board").exists()


def test_help_of_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert genlab("eval", "--help") == 0
    out = capsys.readouterr().out
    assert "SOURCE [KEY=VALUE]" in out
    assert "offline-2k" in out
    assert genlab("eval", "reference", "--help") == 0
    assert "--layout" in capsys.readouterr().out


def test_reference_statistics_go_round(
    tiny_model: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "real.safetensors"
    assert genlab("eval", "reference", real, "-o", path, "--extractor", "tiny", "-q") == 0
    assert "40 images, extractor tiny, layout genlab" in capsys.readouterr().out
    settings = ("--metrics", "fd,pr", "--count", 40, *SETTINGS)
    for reference, board in ((path, "statistics"), (real, "images")):
        out = tmp_path / board
        assert genlab("eval", tiny_model, "--reference", reference, "-o", out, *settings) == 0
    (one,), (two,) = records(tmp_path / "statistics"), records(tmp_path / "images")
    assert one["scores"] == two["scores"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "what is to be scored?"),
        (("edm-fmnst",), "did you mean 'edm-fmnist'?"),
        (("edm-fmnist", "--protocol", "offline-3k"), "did you mean 'offline-2k'?"),
        (("edm-fmnist", "--metrics", "fdi"), "did you mean 'fd"),
        (("edm-fmnist", "--reference", "nowhere.zip", "extractor=tiny"), "nowhere.zip"),
        (("edm-fmnist", "--metrics", "fid", "extractor=tiny"), "ask for fd"),
        (("edm-fmnist", "count=many"), "count takes a whole number"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert genlab("eval", *arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_an_empty_folder_of_images(
    tmp_path: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert genlab("eval", tmp_path / "empty", "--reference", real, "extractor=tiny") == 2
    assert "no images" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_too_few_images_are_warned_about_in_one_line(
    tiny_model: Path, real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--metrics", "fd", "--count", 6, "--no-record")
    assert genlab("eval", tiny_model, "--reference", real, *options, *SETTINGS) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: 6 images for 8 features leave the covariance singular")
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tiny_model: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "board"
    assert genlab("eval", tiny_model, "--reference", real, "-o", out, *SETTINGS) == 2
    captured = capsys.readouterr()
    assert f"cannot write to {out}" in captured.err
    assert captured.out == ""


def test_scores_are_printed_before_the_disk_turns_out_full(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("genlab.eval.leaderboard.records.write_text", full)
    board = tmp_path / "board"
    code = genlab("eval", real, "--reference", real, "-o", board, *SETTINGS[:2], "-q")
    captured = capsys.readouterr()
    assert code == 2
    assert "fd[tiny]" in captured.out
    assert "no space left on device" in captured.err
    assert not list(board.glob("*"))


def command(model: Path, real: Path, board: Path) -> list[str]:
    """The command in a process of its own, with the tiny extractor registered."""
    arguments = [
        "eval", str(model), "--reference", str(real), "--metrics", "fd,pr,cs", "--count", "2000",
        "--dataset", "toys", "-o", str(board), *SETTINGS,
    ]  # fmt: skip
    code = (
        f"import sys; sys.path.insert(0, {str(HELPERS)!r}); import tiny_extractor; "
        "from genlab.eval import collect; collect.PART_SECONDS = 0.0; "
        f"from genlab.cli import main; sys.exit(main({arguments!r}))"
    )
    return [sys.executable, "-c", code]


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_score(
    tiny_model: Path, real: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GENLAB_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(command(tiny_model, real, tmp_path / "killed"), env=environment)
    work = tmp_path / "home" / "evaluations"
    deadline = time.monotonic() + 120
    while not list(work.glob("*/part-*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    for board in ("killed", "whole"):
        subprocess.run(command(tiny_model, real, tmp_path / board), env=environment, check=True)
    (one,), (two,) = records(tmp_path / "killed"), records(tmp_path / "whole")
    for name, score in one["scores"].items():
        assert two["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-9), name
    assert not list(work.glob("*/part-*"))


@pytest.mark.slow
def test_two_processes_give_the_score_of_one(tiny_model: Path, real: Path, tmp_path: Path) -> None:
    base = {**os.environ, "OMP_NUM_THREADS": "1", "GENLAB_HOME": str(tmp_path / "home")}
    processes = start_all(command(tiny_model, real, tmp_path / "two"), environment=base)
    for process in processes:
        process.communicate(timeout=600)
    assert [process.returncode for process in processes] == [0, 0]
    subprocess.run(command(tiny_model, real, tmp_path / "one"), env=base, check=True)
    (one,), (two,) = records(tmp_path / "one"), records(tmp_path / "two")
    assert two["environment"]["processes"] == 2
    for name, score in one["scores"].items():
        assert two["scores"][name]["value"] == pytest.approx(score["value"], rel=1e-9), name
