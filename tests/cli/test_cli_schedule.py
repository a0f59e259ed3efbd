"""``genlab schedule``: levels made for a model, and a sample drawn with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from genlab.cli import main

COMMON = ("--seeds", "0-3", "--teacher-steps", "9")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(model: Path, *arguments: str) -> dict[str, Any]:
    assert main(["schedule", str(model), *COMMON, *arguments, "-o", "levels.yaml"]) == 0
    made: Any = OmegaConf.to_container(OmegaConf.load("levels.yaml"))
    return made


def test_levels_are_made_and_taken(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(tiny_model, "--steps", "4")
    assert (made["name"], made["num_steps"], len(made["sigmas"])) == ("levels", 4, 4)
    assert made["sigmas"][0] == pytest.approx(80)
    assert "after 9 network evaluations an image" in capsys.readouterr().out
    take = ["sample", str(tiny_model), "--seeds", "0", "sampler.schedule=levels.yaml", "-o", "out"]
    assert main(take) == 0
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["config"]["sampler"]["schedule"] == made
    assert manifest["spent"]["nfe"] == 7
    assert main([*take, "--steps", "5"]) == 2
    assert "cannot take 5 steps" in capsys.readouterr().err


def test_settings_change_the_levels(tiny_model: Path) -> None:
    plain = make(tiny_model, "--steps", "4")["sigmas"]
    assert make(tiny_model, "--steps", "4", "--batch-size", "3")["sigmas"] == plain
    others = [
        make(tiny_model, "--steps", "4", "sampler.schedule.sigma_max=20"),
        make(tiny_model, "--steps", "4", "--coeff", "9"),
        make(tiny_model, "--steps", "4", "sampler.schedule=exponential"),
    ]
    assert [other["sigmas"] != plain for other in others] == [True] * 3
    assert others[0]["sigmas"][0] == pytest.approx(20)


def test_without_a_file_they_are_printed(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", str(tiny_model), *COMMON, "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# 3 noise levels for ")
    made: Any = OmegaConf.create(out)
    assert len(made.sigmas) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "12"], "12 noise levels cannot be chosen among 9"),
        (["--steps", "3", "--coeff", "0"], "coeff must be > 0"),
        (["--steps", "3", "sampler.schedule.rho=-1"], "rho > 0"),
        (["--steps", "3", "samplr=edm-heun"], "did you mean 'sampler'"),
    ],
)
def test_what_is_wrong_is_said(
    tiny_model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schedule", str(tiny_model), *COMMON, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_model_must_be_named_and_be_a_diffusion_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["schedule", "--steps", "3"]) == 2
    assert "which model?" in capsys.readouterr().err
    assert main(["schedule", "biggan-fmnist", "--steps", "3"]) == 2
    assert "made for diffusion models" in capsys.readouterr().err
