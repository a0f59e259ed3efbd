"""``genlab compare``."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.cli import main


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
