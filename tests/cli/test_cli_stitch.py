"""``--stitch`` of sample and eval, and ``genlab stitch-similarity``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genlab.cli import main
from genlab.generators.costs import LARGE

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_sample_stitches_and_says_what_was_saved(run: Run, tiny_model: Path) -> None:
    options = ["--seeds", "0-5", "--steps", 4, "-o", "out", "--stitch", f"{tiny_model}:0.5"]
    code, out, err = run("sample", tiny_model, *options)
    assert (code, err) == (0, "")
    assert "7 network evaluations an image" in out
    assert "% of the time saved)" in out
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["identity"]["sampler"]["stitch"] == [
        {"model": str(tiny_model), "fraction": 0.5}
    ]
    assert len(manifest["identity"]["generators_sha256"]) == 1
    models = manifest["stitch"]["models"]
    assert [(each["model"], each["evaluations"]) for each in models] == [(LARGE, 18), ("tiny", 24)]
    assert manifest["stitch"]["time_saved"] < 1
    assert run("sample", tiny_model, *options)[1].endswith("nothing to do\n")
    code, _, err = run("sample", tiny_model, *options[:-1], f"{tiny_model}:0.25")
    assert code == 2
    assert "sampler.stitch.0.fraction was 0.5, now 0.25" in err


def test_stitch_may_be_given_several_times_and_in_the_configuration(
    run: Run, tiny_model: Path
) -> None:
    short = ["--stitch", f"{tiny_model}:0.25", "--stitch", f"{tiny_model}:0.5"]
    code, out, _ = run("sample", tiny_model, *short, "--dry-run")
    assert code == 0
    text = f"sampler.stitch=['{tiny_model}:0.25', '{tiny_model}:0.5']"
    assert run("sample", tiny_model, text, "--dry-run")[:2] == (0, out)
    Path("run.yaml").write_text(out)
    assert run("sample", "--config", "run.yaml", "--dry-run")[:2] == (0, out)


@pytest.mark.parametrize(
    ("stitch", "message"),
    [
        ("edm-fmnist", "write MODEL:FRACTION"),
        ("edm-fmnist:2", "between 0 and 1, got 2.0"),
        ("nobody:0.4", "there is no model 'nobody'"),
        ("edm-fmnist:0.4", "edm-fmnist knows 10 classes and the model 3"),
        ("biggan-fmnist:0.4", "name a diffusion model"),
    ],
)
def test_wrong_stitches_are_one_sentence(
    run: Run, tiny_model: Path, stitch: str, message: str
) -> None:
    for command in ("sample", "eval"):
        code, out, err = run(command, tiny_model, "--stitch", stitch)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_other_families_have_no_steps_to_take(run: Run) -> None:
    code, _, err = run("sample", "biggan-fmnist", "--stitch", "dit-fmnist-s:0.4")
    assert code == 2
    assert "only the steps of a diffusion model can be taken by another one" in err


def test_eval_records_what_each_model_cost(run: Run, tiny_model: Path) -> None:
    options = [
        "--metrics", "vendi", "--extractor", "classifier", "--dataset", "fmnist", "--count", 8,
        "--steps", 4, "--stitch", f"{tiny_model}:0.5", "--json",
    ]  # fmt: skip
    code, out, err = run("eval", tiny_model, *options)
    assert code == 0, err
    told = json.loads(out)["sampling"]["stitch"]
    assert [each["evaluations"] for each in told["models"]] == [24, 32]
    assert told["time_saved"] < 1
    (record,) = Path("leaderboard").rglob("*.json")
    assert json.loads(record.read_text())["sampling"]["stitch"] == told
    assert run("leaderboard", "show")[0] == 0
    run("sample", tiny_model, "--seeds", "0-7", "--stitch", f"{tiny_model}:0.5", "-o", "images")
    code, _, err = run("eval", "images", "--stitch", "dit-fmnist-s:0.4")
    assert code == 2
    assert "holds images: --steps, --guidance and --stitch need a model" in err


def test_similarity_is_drawn_and_written(run: Run, tiny_model: Path) -> None:
    code, out, err = run(
        "stitch-similarity", tiny_model, tiny_model, "--seeds", "0-2", "--steps", 4, "-o",
        "out/alike.png",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert f"up to step 4 of 4 (noise level 0.002): --stitch {tiny_model}:1\n" in out
    with Image.open("out/alike.png") as picture:
        assert picture.width > 300
    told: dict[str, Any] = json.loads(Path("out/alike.json").read_text())
    assert told["above"] == {"value": 0.99, "last_step": 3, "fraction": 1.0}
    assert told["sampler"]["schedule"]["num_steps"] == 4
    assert len(told["steps"]) == 4
    code, out, _ = run(
        "stitch-similarity", tiny_model, tiny_model, "--seeds", 0, "--above", 1, "-o", "two.svg",
        "sampler.solver=euler", "sampler.schedule.num_steps=2",
    )  # fmt: skip
    assert code == 0
    assert Path("two.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["biggan-fmnist", "dit-fmnist"], "only diffusion models say something about noisy images"),
        (["dit-fmnist-s", "dit-fmnist", "-o", "x.jpg"], "the picture is a PNG or an SVG"),
        (["dit-fmnist-s", "dit-fmnist", "seeds=3"], "'seeds=3' is no setting here"),
        (["dit-fmnist-s", "nobody"], "there is no model 'nobody'"),
    ],
)
def test_wrong_comparisons_are_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run("stitch-similarity", *arguments)
    assert (code, out) == (2, "")
    assert message in err
