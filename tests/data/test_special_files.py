"""Pipes, devices and links to them: named, passed over, and never opened."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.data.check.checks import check
from genlab.data.dataset import ImageDataset
from genlab.data.sources.opening import open_source
from genlab.errors import CheckpointError, DataError, EvaluationError
from genlab.eval.leaderboard.strict_json import read_json
from genlab.files import read_json_object


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three images each, with a pipe, a link to an endless device, a dead link."""
    for number, name in enumerate(["a", "b"] * 3):
        (tmp_path / name).mkdir(exist_ok=True)
        pixels = np.full((8, 8), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "b" / "zero.png").symlink_to("/dev/zero")
    return tmp_path


def test_special_files_in_a_folder_are_named_and_passed_over(folder: Path) -> None:
    report = check(folder)
    assert report.classes == {"a": 3, "b": 3}
    assert report.trainable
    [finding] = [f for f in report.findings if f.code == "special"]
    assert "a/pipe.png, b/zero.png" in finding.message
    images, _ = ImageDataset(folder).load_all()
    assert len(images) == 6


def test_a_pipe_in_place_of_the_manifest_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "dataset.json")
    assert "dataset.json" in " ".join(f.message for f in check(folder).findings)


@pytest.mark.parametrize("name", ["set.zip", "set.npz", "set.png", "set"])
def test_a_pipe_in_place_of_a_data_set_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name} is a pipe or a device"):
        open_source(tmp_path / name)


def test_a_pipe_in_place_of_an_idx_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="is a pipe or a device"):
        open_source(tmp_path)


def test_a_pipe_in_place_of_a_models_config_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        read_json_object(tmp_path / "config.json")


def test_a_pipe_in_place_of_a_record_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(EvaluationError, match="is a pipe or a device"):
        read_json(tmp_path / "x.json")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "set" / "b").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "set" / "b" / "0.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "set" / "b")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set" / "loop")
    source = open_source(tmp_path / "set")
    assert [source.name(i) for i in range(len(source))] == ["b/0.png"]
