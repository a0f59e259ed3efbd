"""``genlab forgetting`` and ``genlab finetune --forget``."""

import json
from pathlib import Path

import pytest
from small_adapters import write_small_adapter

from genlab import load
from genlab.cli import main

MODEL = "dit-fmnist-s"


@pytest.mark.filterwarnings("ignore:.*leave the covariance singular")
def test_a_model_that_forgot_nothing_is_its_base(
    fashion_mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--forget", "Bag", "--data", fashion_mnist, "--fit", "pad", "--samples", 1, "--steps", 2,
        "--real", 4, "--relearn-images", 2, "--relearn-steps", 1, "--json", "--device", "cpu",
    ]  # fmt: skip
    assert main(["forgetting", MODEL, MODEL, *map(str, options)]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["base"], report["model"], report["classes"]) == (MODEL, MODEL, [8])
    assert report["real_images"] == 40
    for question in ("share", "kept_consistency", "kept_fd", "relearned_share", "probe_overall"):
        assert report[question]["before"] == report[question]["after"]
    assert "probing" in err


@pytest.mark.filterwarnings("ignore:.*leave the covariance singular")
def test_an_adapter_is_merged(
    fashion_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tuple(name for name in load(MODEL).class_names or () if name != "Bag")
    forget = ("forget.classes=[bag]",)
    for method in ("lora", "vpt"):
        write_small_adapter(tmp_path / method, Path(MODEL), method, *forget, names=kept)
    options = [
        "--forget", "Bag", "--data", fashion_mnist, "--fit", "pad", "--samples", 1, "--steps", 2,
        "--real", 4, "--relearn-images", 2, "--relearn-steps", 1, "--json", "--device", "cpu",
    ]  # fmt: skip
    assert main(["forgetting", MODEL, str(tmp_path / "lora"), *map(str, options)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kept_fd"]["before"] != report["kept_fd"]["after"]
    assert main(["forgetting", MODEL, str(tmp_path / "vpt"), *map(str, options)]) == 2
    assert "prompts cannot be merged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forgetting", MODEL, MODEL, "--forget", "hat"], "the model knows no class 'hat'"),
        (["forgetting", MODEL, MODEL, "--forget", "8", "--samples", "0"], "0 is not in the range"),
        (
            ["finetune", MODEL, "--forget", "hat,bag", "--dry-run"],
            "the model knows no class 'hat'",
        ),
        (["finetune", "pixelcnnpp-fmnist", "--forget", "bag", "--dry-run"], "a diffusion model"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path)] if arguments[0] == "forgetting" else []
    assert main([*arguments, *data]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_the_settings_show_what_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", MODEL, "--forget", "bag,T-shirt/top", "--dry-run"]) == 0
    out, _ = capsys.readouterr()
    assert "- T-shirt/top" in out
    assert "- bag" in out
