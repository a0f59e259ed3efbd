"""``genlab presets recommend``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import class_files, encoded, picture, write_folder

import genlab
from genlab import cli
from genlab.data.dataset import ImageDataset
from genlab.training.recommend.candidates import FAMILIES
from genlab.training.recommend.speed import Speed


def run(*args: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["presets", "recommend", *map(str, args)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network trains on 100 images a second, as fast in bfloat16 as in float32."""
    monkeypatch.setattr(
        "genlab.training.recommend.recommendation.measure_speed",
        lambda config, metadata, device: Speed(images_per_second=100.0, steps=3, seconds=1.0),
    )


def write_set(
    folder: Path, size: int, channels: int, classes: int, count: int = 60, name: str = "set"
) -> Path:
    """Noise as npz."""
    rng = np.random.default_rng(0)
    shape = (count, size, size, channels) if channels == 3 else (count, size, size)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    path = folder / f"{name}.npz"
    if classes:
        np.savez(path, arr_0=pixels, arr_1=np.arange(count) % classes)
    else:
        np.savez(path, arr_0=pixels)
    return path


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_taken_by_train(
    family: str,
    size: int,
    channels: int,
    classes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_set(tmp_path, size, channels, classes)
    args = (data, "-o", "own.yaml", "--family", family, "--no-measure")
    if family == "biggan" and not classes:
        code, _, err = run(*args, capfd=capfd)
        assert code == 2
        assert "takes images of two classes or more" in err
        return
    assert run(*args, capfd=capfd)[0] == 0
    assert cli.main(["train", "own.yaml", "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert f"path: {data}" in out
    assert "was not checked" not in err


@pytest.mark.usefixtures("on_a_machine")
def test_the_yaml_is_printed_and_the_table_beside_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path, 32, 3, 2)
    code, out, err = run(data, "--minutes", 10, capfd=capfd)
    assert code == 0
    config = tmp_path / "printed.yaml"
    config.write_text(out)
    assert cli.main(["train", str(config), "--dry-run"]) == 0
    capfd.readouterr()
    # 400 passes over 60 images would be fewer than the least there is to a run.
    assert "duration_kimg: 30.0" in out
    assert "the least that is worth while, on so few images, 100 images/s measured here" in out
    for words in ("song-unet", "32x32 RGB", "500.0 over 60 images", "6 min", "30 kimg"):
        assert words in err
    assert "'genlab finetune --help'" in " ".join(err.split())


@pytest.mark.usefixtures("on_a_machine")
def test_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, file = write_set(tmp_path, 32, 3, 2, count=200), tmp_path / "own.yaml"
    code, out, _ = run(data, "-o", file, "--json", "--minutes", 20, capfd=capfd)
    found = json.loads(out)
    assert code == 0
    assert found["path"] == str(file)
    assert found["images_per_second"] == 100
    assert found["kimg"] == found["settings"]["duration_kimg"] == 80
    assert found["passes"] == 400
    assert found["minutes"] == pytest.approx(80_000 / 100 / 60 / 0.9)
    assert found["reasons"].keys() >= {"duration_kimg", "network", "optimizer.lr"}
    assert "objective.augment" in found["reasons"]
    assert "data.fit" not in found["reasons"], "it is not set"
    assert file.is_file()


@pytest.mark.usefixtures("on_a_machine")
def test_a_file_is_replaced_only_when_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, file = write_set(tmp_path, 32, 3, 2), tmp_path / "own.yaml"
    file.write_text("mine\n")
    code, _, err = run(data, "-o", file, capfd=capfd)
    assert code == 2
    assert "is there already; choose another file, or give --overwrite" in err
    assert file.read_text() == "mine\n"
    assert run(data, "-o", file, "--overwrite", capfd=capfd)[0] == 0
    assert "duration_kimg" in file.read_text()


@pytest.mark.usefixtures("on_a_machine")
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda p: p / "nothing", (), "there is no "),
        (lambda p: write_folder(p / "empty", {"a/": ""}), (), "empty"),
        (lambda p: write_folder(p / "text", {"a/x.png": "no picture"}), (), "x.png"),
        (lambda p: write_set(p, 32, 3, 2, count=49), (), "49 images are too few"),
        (lambda p: write_set(p, 8, 3, 2), (), "smaller than the 16x16"),
        (lambda p: write_set(p, 300, 1, 2, count=50), (), "choose --size 64 or the like"),
        (lambda p: write_set(p, 32, 3, 2), ("--size", 20), "is --size 16"),
        (lambda p: write_set(p, 32, 3, 2), ("--size", 64), "would enlarge images of 32x32"),
        (lambda p: write_set(p, 32, 3, 2), ("--minutes", 1), "give --minutes 6,"),
        (lambda p: write_set(p, 32, 3, 2), ("-o", "own.txt"), "files that end in .yaml"),
        (lambda p: write_set(p, 32, 3, 2), ("--minutes", 1, "--no-measure"), "--no-measure out"),
        (lambda p: write_set(p, 32, 3, 0), ("--family", "biggan"), "two classes or more"),
    ],
)
def test_bad_input_is_one_sentence(
    make: object,
    options: tuple[object, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert callable(make)
    data = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(data, *options, capfd=capfd)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("genlab")
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_few_images_with_a_test_part_are_judged_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for part, count in [("train", 30), ("test", 3)]:
        files = {
            f"{name}/{i}.png": encoded(picture(100 * k + i, (16, 16)))
            for k, name in enumerate(("bag", "coat"))
            for i in range(count)
        }
        write_folder(tmp_path / "mine" / part, files)
    assert run("mine", "-o", "own.yaml", "--no-measure", capfd=capfd)[0] == 0
    assert cli.main(["train", "own.yaml", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "validation:\n  path: null\n  split: test\n" in out
    assert "stopping:\n  metric: heldout_loss\n  patience: 2\n" in out


def test_images_of_one_class_are_trained_on_without_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, 32, 3, 1)
    assert run("set.npz", "-o", "own.yaml", "--no-measure", capfd=capfd)[0] == 0
    assert "labels: false" in Path("own.yaml").read_text()
    assert cli.main(["train", "own.yaml", "--dry-run"]) == 0


def test_images_that_are_not_alike(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A folder that was not prepared is found out before it is trained on."""
    files = class_files(count=30)
    files["coat/29.png"] = encoded(picture(5, (9, 8)))
    code, _, err = run(write_folder(tmp_path / "mixed", files), "--no-measure", capfd=capfd)
    assert code == 2
    assert "make all alike first, with 'genlab data prepare'" in err


def test_latents(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "latents", {"latents.json": "{}"})
    code, _, err = run(tmp_path / "latents", capfd=capfd)
    assert code == 2
    assert "holds latents, and what is recommended here draws pixels" in err


@pytest.mark.slow
def test_real_images_from_the_folder_to_a_model(
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Prepare, recommend with a real measurement, train for some steps, export, load, draw."""
    source = shared / "data" / "adventurers-32.zip"
    if not source.is_file():
        pytest.skip("no adventurers-32.zip in the folder of shared data")
    monkeypatch.chdir(tmp_path)
    shutil.unpack_archive(source, tmp_path / "all")
    for folder in sorted((tmp_path / "all").iterdir())[:3]:
        for file in sorted(folder.glob("*.png"))[:40] if folder.is_dir() else ():
            target = tmp_path / "mine" / folder.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    assert cli.main(["data", "prepare", "mine", "mine.zip", "--size", "16", "--fit", "crop"]) == 0
    assert run("mine.zip", "-o", "mine.yaml", "--minutes", 1e4, "--json", capfd=capfd)[0] == 0
    short = ["duration_kimg=0.064", "batch_size=16", "output.preview_count=6"]
    assert cli.main(["train", "mine.yaml", *short, "output.preview_kimg=0.032"]) == 0
    assert len(list((tmp_path / "runs" / "mine" / "previews").glob("*.png"))) >= 2
    assert cli.main(["train", "export", "runs/mine", "-o", "model"]) == 0
    model = genlab.load("model")
    assert model.class_names == tuple(sorted(ImageDataset("mine.zip").class_names or ()))
    images = model.sample([0, 1], [0, 2], num_steps=2)
    assert images.shape == (2, 3, 16, 16)
    assert torch.isfinite(images).all()
