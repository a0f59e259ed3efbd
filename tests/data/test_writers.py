"""PNG, zip and npz: what is written can be read, and equal images give equal bytes."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.data.writing import writers
from genlab.errors import DataError


def images(channels: int, count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, 6, 4, channels), dtype=np.uint8))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_png_keeps_every_pixel(tmp_path: Path, channels: int, mode: str) -> None:
    pixels = images(channels)[0]
    writers.write_png(tmp_path / "a.png", pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
    np.testing.assert_array_equal(writers.decode_png((tmp_path / "a.png").read_bytes()), pixels)


def test_png_has_no_two_channels() -> None:
    with pytest.raises(DataError, match="npz"):
        writers.encode_png(images(2)[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_zip_is_laid_out_as_edm_reads_it(tmp_path: Path, channels: int) -> None:
    pictures = images(channels)
    names = [writers.image_name(seed) for seed in (0, 1, 2, 999, 1000)]
    encoded = zip(names, map(writers.encode_png, pictures), strict=True)
    writers.write_zip(tmp_path / "a.zip", encoded, [3, 1, 4, 1, 5])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [*names, "dataset.json"]
        assert names[-1] == "00001/img00001000.png"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        labels = json.loads(archive.read("dataset.json"))["labels"]
    assert labels == [list(pair) for pair in zip(names, [3, 1, 4, 1, 5], strict=True)]
    first = list(writers.read_first(tmp_path / "a.zip", 3))
    np.testing.assert_array_equal(first, pictures[:3])


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_is_laid_out_as_adm_reads_it(tmp_path: Path, channels: int) -> None:
    pictures = images(channels)
    path = tmp_path / "a.npz"
    writers.write_npz(path, iter(pictures), (5, 6, 4, channels), [3, 1, 4, 1, 5])
    with np.load(path) as stored:
        assert stored.files == ["arr_0", "arr_1"]
        assert stored["arr_0"].dtype == np.uint8
        assert stored["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(stored["arr_0"], pictures)
        np.testing.assert_array_equal(stored["arr_1"], [3, 1, 4, 1, 5])
    np.testing.assert_array_equal(list(writers.read_first(path, 9)), pictures)


def test_archives_without_labels(tmp_path: Path) -> None:
    writers.write_npz(tmp_path / "a.npz", iter(images(1)), (5, 6, 4, 1), None)
    with np.load(tmp_path / "a.npz") as stored:
        assert stored.files == ["arr_0"]
    writers.write_zip(tmp_path / "a.zip", [("a.png", writers.encode_png(images(1)[0]))], None)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
