"""Transparent images: what a refusal advises is a setting of the command at hand, and works."""

from pathlib import Path

import pytest
from small_sets import encoded, picture, write_folder
from tiny_extractor import TinyExtractor

from genlab import cli
from genlab.choices import Alpha
from genlab.config import load
from genlab.data.dataset import ImageDataset
from genlab.errors import ConfigError, DataError
from genlab.eval.config import EvalConfig
from genlab.eval.prepare import merge_settings
from genlab.eval.references.building import find_reference
from genlab.eval.samples import StoredImages
from genlab.eval.subject import Subject
from genlab.generators.given import WORDING
from genlab.training.config import DataConfig, TrainConfig
from genlab.training.loop.batches import open_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six half transparent images."""
    files = {f"{i}.png": encoded(picture(i, (8, 8), "RGBA")) for i in range(6)}
    return write_folder(tmp_path / "clear", files)


def test_training_takes_what_it_advises(folder: Path) -> None:
    config = DataConfig(path=str(folder), labels=False)
    with pytest.raises(DataError, match=r"data\.alpha=white or data\.alpha=black"):
        open_dataset(config)
    told = [f"data.path={folder}", "data.labels=false", "data.alpha=white", "duration_kimg=1"]
    merged = load(TrainConfig, None, "train", told)
    assert merged.data.alpha is Alpha.white
    images, _ = open_dataset(merged.data).load_all()
    assert images.shape == (6, 3, 8, 8)


def test_evaluation_takes_what_it_advises(folder: Path) -> None:
    with pytest.raises(DataError, match=r"transparent; .*: alpha=white or alpha=black"):
        Subject.of_folder(folder)
    config = merge_settings(None, ["alpha=white"], {})
    subject = Subject.of_folder(folder, alpha=config.alpha)
    assert subject.images is not None
    white = subject.images.read(0, 6).images
    black = StoredImages(folder, alpha="black").read(0, 6).images
    assert (white >= black).all()
    assert (white > black).any()
    with pytest.raises(DataError, match="alpha=white"):
        find_reference(str(folder), TinyExtractor(), [])
    assert find_reference(str(folder), TinyExtractor(), [], alpha="white").image_size == 8
    with pytest.raises(ConfigError, match="refuse, black, white"):
        EvalConfig(alpha="green")


def test_what_lies_behind_is_part_of_the_images_identity(folder: Path) -> None:
    white, black = (StoredImages(folder, alpha=colour) for colour in ("white", "black"))
    assert white.identity() != black.identity()
    assert white.at(8).identity() != black.at(8).identity()


def test_compare_takes_what_it_advises(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert cli.main(["compare", str(folder)]) == 2
    assert "--alpha white or --alpha black" in capfd.readouterr().err
    assert cli.main(["compare", str(folder), "--alpha", "white"]) == 0
    assert Path("compare.png").is_file()


def test_a_command_without_the_setting_names_one_that_has_it(folder: Path) -> None:
    with pytest.raises(DataError, match="'genlab data prepare' with --alpha white"):
        ImageDataset(folder, labels=False, wording=WORDING)


def test_images_of_several_sizes_are_sent_to_prepare_where_scores_are_made(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(picture(i, (8 + i, 8))) for i in range(2)}
    images = StoredImages(write_folder(tmp_path / "set", files))
    with pytest.raises(DataError, match="make all alike first, with 'genlab data prepare'"):
        images.read(0, 2)
