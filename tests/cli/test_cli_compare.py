"""``genlab compare``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genlab.cli import main
from genlab.cli.compare import _titles


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the bundled model that drew the same classes with two samplers."""
    folder = tmp_path_factory.mktemp("runs")
    for steps in ("1", "2"):
        command = ["sample", "edm-fmnist", "--seeds", "0-2", "--classes", "dress,sandal,bag"]
        settings = ["--no-grid", "-o", str(folder / f"steps-{steps}")]
        assert main([*command, *settings, f"sampler.schedule.num_steps={steps}"]) == 0
    return folder


def ink(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")) < 128


def test_rows_and_captions(runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both, two = tmp_path / "both.png", tmp_path / "two.png"
    folders = [str(runs / name) for name in ("steps-1", "steps-2")]
    assert main(["compare", *folders, "-o", str(both)]) == 0
    assert "2 rows of 3 images" in capfd.readouterr().out
    assert main(["compare", *folders, "-o", str(two), "--count", "2"]) == 0
    wide, narrow = ink(both), ink(two)
    assert wide.shape[0] == narrow.shape[0]
    assert wide.shape[1] - narrow.shape[1] == 68  # a 64 pixel tile and a gap
    assert wide[:20].any()  # the names of the classes
    drawn = np.asarray(Image.open(runs / "steps-2" / "images" / "00000" / "img00000001.png"))
    shown = np.asarray(Image.open(both).convert("L"))
    rows, columns = shown.shape[0] - 68, shown.shape[1] - 2 * 68  # second of three, last row
    np.testing.assert_array_equal(shown[rows : rows + 64 : 2, columns : columns + 64 : 2], drawn)


def test_other_classes_have_no_captions(runs: Path, tmp_path: Path) -> None:
    """Images without a manifest and of another size still make a row."""
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.new("L", (28, 28), 100).save(plain / "0.png")
    picture = tmp_path / "mixed.png"
    assert main(["compare", str(runs / "steps-1"), str(plain), "-o", str(picture)]) == 0
    shown = ink(picture)
    assert shown.shape[0] == 4 + 2 * (64 + 4)  # all are enlarged twice, as the larger ones need
    assert not shown[-68:-64].any()  # the smaller ones stand in the middle


def test_what_cannot_be_compared(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path / "absent")]) == 2
    assert "there are no images at" in capfd.readouterr().err
    assert main(["compare", str(runs / "steps-1"), "-o", str(tmp_path / "it.jpg")]) == 2
    assert "the picture is a PNG" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def compare(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compares samplers of a tiny model, and gives the picture and the cache."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> int:
        return main(["compare", str(tiny_model), "--cache", "cache", "-o", "it.png", *args])

    return run


def manifests() -> dict[str, dict[str, Any]]:
    """What decided each cached run -> its manifest."""
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(Path("cache").glob("*/manifest.json"))
    }


def test_samplers_of_one_model(compare: Any, capfd: pytest.CaptureFixture[str]) -> None:
    specs = ["-s", "solver:euler steps=2", "-s", "heun steps=2 solver.S_churn=1 guidance=3"]
    assert compare("--seeds", "3-5", "--labels", "1", *specs) == 2
    assert "labels" in capfd.readouterr().err  # three seeds want three classes
    assert compare("--seeds", "3-5", *specs) == 0
    assert "wrote it.png: 3 rows of 2 images" in capfd.readouterr().out
    made = list(manifests().values())
    assert sorted(run["spent"]["nfe"] for run in made) == [2, 6]  # euler 2; heun 3 of two halves
    solvers = [run["identity"]["sampler"]["solver"] for run in made]
    assert {solver["name"] for solver in solvers} == {"euler", "heun"}
    assert {"name": "heun", "S_churn": 1} in solvers
    for run in made:
        assert run["seeds"] == "3-5"
        assert run["labels"] == [0, 1, 2]
    shown = np.asarray(Image.open("it.png").convert("L"))
    side = 96 + 4
    euler = next(name for name, run in manifests().items() if run["spent"]["nfe"] == 2)
    drawn = np.asarray(Image.open(f"cache/{euler}/images/00000/img00000004.png"))
    top, left = shown.shape[0] - 2 * side, shown.shape[1] - 2 * side  # second row, first column
    np.testing.assert_array_equal(shown[top : top + 96 : 12, left : left + 96 : 12], drawn)


def test_no_column_is_drawn_twice(compare: Any) -> None:
    assert compare("--seeds", "0-1", "-s", "steps=2", "-s", "steps=3") == 0
    before = {name: run["spent"]["seconds"] for name, run in manifests().items()}
    assert compare("--seeds", "0-1", "-s", "steps=4", "-s", "steps=3") == 0
    after = {name: run["spent"]["seconds"] for name, run in manifests().items()}
    assert len(after) == 3
    assert before.items() <= after.items()
    assert compare("--seeds", "0-2", "-s", "steps=3") == 0  # other rows are other runs
    assert len(manifests()) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-s", "hoin"], "--sampler hoin: there is no preset and no solver of this name; did you"),
        (["-s", "solver:karras"], "there is no preset and no solver of this name"),
        (["-s", "steps=none"], "steps: 'none' is not a valid integer"),
        (["-s", "'heun"], "no closing quotation"),
        (["-s", "solver.S_chrun=1"], "did you mean 'S_churn'"),
        (["-s", "heun", "--count", "3"], "--count is of runs"),
        (["-s", "heun", "other"], "--sampler draws with one model, got 2"),
        (["--seeds", "0-3"], "--seeds has no effect without --sampler"),
    ],
)
def test_wrong_samplers(
    compare: Any, capfd: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    code = compare(*args) if "--seeds" not in args else main(["compare", "a", *args])
    assert code == 2
    err = capfd.readouterr().err
    assert message in err.lower() if message.islower() else message in err
    assert not Path("it.png").exists()


def test_titles_say_what_differs() -> None:
    describe = ["heun (S_churn 3, S_noise 1.1), 18 steps, cfg 2", "heun, 18 steps, cfg 2"]
    assert _titles(describe, ["a", "b"]) == ["heun (S_churn 3, S_noise 1.1)", "heun"]
    assert _titles(["heun, 18 steps"] * 2, ["schedule.rho=3", ""]) == [
        "schedule.rho=3", "the model's own"
    ]  # fmt: skip
    assert _titles(["heun, 18 steps"], ["heun"]) == ["heun, 18 steps"]


def test_a_column_may_be_stitched(compare: Any, tiny_model: Path) -> None:
    specs = ["-s", "steps=2", "-s", f"steps=2 stitch={tiny_model}:0.5"]
    assert compare("--seeds", "0-1", *specs) == 0
    made = [run["config"]["sampler"].get("stitch", []) for run in manifests().values()]
    assert sorted(map(len, made)) == [0, 1]
