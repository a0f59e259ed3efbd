"""``genlab adapter``, and adapters where other commands take a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_adapters import BASE_NAMES, write_base, write_small_adapter

from genlab import load
from genlab.cli import main
from genlab.cli.completion import adapter_names

STEPS = "sampler.schedule.num_steps=2"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, adapters of it, and another model."""
    folder = tmp_path_factory.mktemp("models")
    base, _ = write_base(folder / "base"), write_base(folder / "other", seed=6)
    for method in ("lora", "diffit", "vpt"):
        write_small_adapter(folder / "adapters" / method, base, method)
    return folder


def run(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def sample(output: Path, *arguments: object) -> dict[str, Any]:
    assert run("sample", *arguments, "--seeds", "0-2", STEPS, "-q", "-o", output) == 0
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest


def pictures(output: Path) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(Image.open(p)) for p in sorted((output / "images").rglob("*.png"))])


def test_show(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("adapter", "show", models / "adapters/lora") == 0
    printed = capsys.readouterr().out
    for text in (
        "method      lora r=2 alpha=5",
        ": it is here, with these weights",
        "8 images",
        "classes     3, cat, frog, ship: each begins as the mean of all classes",
    ):
        assert text in printed
    assert run("adapter", "show", models / "adapters/lora", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["base_state"], told["num_classes"]) == ("matches", 3)
    assert told["trained_numbers"] == 2 * 2 * (16 + 48) + 4 * 16  # two blocks, and the class table
    other = models / "other"
    assert run("adapter", "show", models / "adapters/lora", "--base", other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["base_state"] == "differs"
    assert run("adapter", "show", models / "adapters/lora", "--base", "none/at/all") == 0
    assert "there is no file or folder none/at/all" in capsys.readouterr().out
    assert run("doctor", models / "adapters/lora") == 0
    assert "it is here, with these weights" in capsys.readouterr().out


def test_list_add_and_remove(
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("adapter", "list") == 0
    assert "there is no adapter kept, or below this folder" in capsys.readouterr().out
    assert run("adapter", "list", models, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["kept"], row["classes"]) for row in rows] == [
        ("diffit", False, 3), ("lora", False, 3), ("vpt", False, 3),
    ]  # fmt: skip
    assert run("adapter", "add", models / "adapters/lora", "--name", "lamps") == 0
    assert "use it as 'lamps'" in capsys.readouterr().out
    assert adapter_names() == ["lamps"]
    assert run("adapter", "list") == 0
    assert "lamps" in capsys.readouterr().out
    assert run("zoo", "list", "--json") == 0
    [row] = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "lamps"]
    assert row["state"] == f"adapter of {models / 'base'}"
    by_name = sample(tmp_path / "by-name", "lamps")
    assert by_name["identity"] == sample(tmp_path / "by-path", models / "adapters/lora")["identity"]
    assert run("adapter", "add", models / "adapters/lora", "--name", "lamps") == 2
    assert run("adapter", "add", models / "base") == 2
    assert run("adapter", "remove", "lamps") == 0
    assert run("adapter", "remove", "lamps") == 2
    assert "no adapter is kept as 'lamps'" in capsys.readouterr().err
    assert adapter_names() == []


def test_damaged_adapters_are_listed_with_what_is_wrong(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("cut", '{"base": "x'), ("odd", '{"base": 3, "method": [], "x": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(text)
        (tmp_path / name / "adapter_model.safetensors").touch()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "adapter_config.json").write_text("{}")
    assert run("adapter", "list", tmp_path, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert "cannot be read" in rows["cut"]["fault"]
    assert "adapter_model.safetensors" in rows["alone"]["fault"]
    assert (rows["odd"]["base"], rows["odd"]["method"], rows["odd"]["bytes"]) == (None, None, 0)
    assert run("adapter", "list", tmp_path) == 0
    assert run("adapter", "show", tmp_path / "odd") == 2
    assert run("adapter", "list", tmp_path / "nowhere") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_merge(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora, plain = models / "adapters/lora", tmp_path / "merged"
    assert run("adapter", "merge", lora, "-o", plain) == 0
    assert load(plain).class_names == ("cat", "frog", "ship")
    assert "| Base |" in (plain / "README.md").read_text()
    sample(tmp_path / "a", lora), sample(tmp_path / "b", plain)
    difference = pictures(tmp_path / "a").astype(int) - pictures(tmp_path / "b")
    assert np.abs(difference).max() <= 1
    assert run("adapter", "merge", models / "adapters/vpt", "-o", tmp_path / "no") == 2
    assert "prompts cannot be merged" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert run("adapter", "merge", lora, "-o", lora) == 2
    assert "give -o another folder" in capsys.readouterr().err


def test_sample_takes_an_adapter_for_a_model_and_beside_one(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = models / "adapters/lora"
    alone = sample(tmp_path / "alone", lora, "--classes", "cat,ship")
    beside = sample(
        tmp_path / "beside", models / "base", "--adapter", lora, "--classes", "cat,ship"
    )
    assert alone["identity"] == beside["identity"]
    assert alone["identity"]["adapted_by"]["method"]["name"] == "lora"
    assert beside["config"]["adapter"] == str(lora)
    np.testing.assert_array_equal(pictures(tmp_path / "alone"), pictures(tmp_path / "beside"))
    # Two adapters of one base, and the base itself, are three runs.
    others = ("vpt", "diffit")
    for other in others:
        code = run("sample", models / "adapters" / other, "--seeds", "0-2", STEPS,
                   "-o", tmp_path / "alone", "--classes", "cat,ship")  # fmt: skip
        assert code == 2
        assert "holds images made with other settings" in capsys.readouterr().err
    assert run("sample", models / "other", "--adapter", lora, "-o", tmp_path / "no") == 2
    assert "give that base" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_dry_run_keeps_the_adapter(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = models / "adapters/lora"
    assert run("sample", models / "base", "--adapter", lora, STEPS, "--dry-run") == 0
    config = tmp_path / "again.yaml"
    config.write_text(capsys.readouterr().out)
    assert "samples/lora" in config.read_text()
    again = ["--config", config, "--seeds", "0-2", "-q", "-o", tmp_path / "again"]
    assert run("sample", *again) == 0
    manifest = json.loads((tmp_path / "again/manifest.json").read_text())
    assert manifest["identity"]["adapted_by"]["method"]["name"] == "lora"


def test_eval_and_compare_take_an_adapter(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tmp_path / "lora"
    write_small_adapter(lora, models / "base", "lora", "resolution=32")  # as the extractor's
    options = ["--metrics", "vendi", "--extractor", "cnn-fmnist", "--count", "8", STEPS, "-q"]
    options += ["-o", str(tmp_path / "board"), "--json"]
    assert run("eval", lora, *options) == 0
    alone = json.loads(capsys.readouterr().out)
    assert run("eval", models / "base", "--adapter", lora, *options) == 0
    beside = json.loads(capsys.readouterr().out)
    assert alone["model"] == beside["model"] == "lora"
    assert alone["scores"] == beside["scores"]
    assert run("eval", models / "other", "--adapter", lora, *options) == 2
    assert run("compare", lora, "--sampler", "steps=2", "--seeds", "0-1",
               "--cache", tmp_path / "cache", "-o", tmp_path / "grid.png") == 0  # fmt: skip
    assert (tmp_path / "grid.png").is_file()
    images = tmp_path / "images"
    images.mkdir()
    assert run("eval", images, "--adapter", lora, *options) == 2
    assert "--adapter needs a model" in capsys.readouterr().err


def test_an_adapter_is_no_base_of_another(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for name in BASE_NAMES[2:]:
        (data / name).mkdir(parents=True)
        Image.new("L", (8, 8), 40).save(data / name / "0.png")
    for end in ((), ("--dry-run",)):
        code = run("finetune", models / "adapters/lora", "--data", data, "-o", tmp_path / "x", *end)
        assert code == 2
        assert "is an adapter, and a base must be a whole model; merge" in capsys.readouterr().err
    assert run("convert", models / "adapters/lora", "-o", tmp_path / "y") == 2
