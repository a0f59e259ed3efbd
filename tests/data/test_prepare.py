"""Packing: what comes out trains as it is, the same bytes every time, whole or not at all."""

import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import class_files, encoded, manifest, picture, write_folder, write_zip

from genlab.data.check.checks import check
from genlab.data.conform import Conform
from genlab.data.dataset import ImageDataset
from genlab.data.prepare import prepare
from genlab.data.sources.opening import open_source
from genlab.errors import ConfigError, DataError, OutputError


@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_a_folder_becomes_a_zip_with_the_same_pixels_and_labels(
    tmp_path: Path, encoding: str
) -> None:
    root = write_folder(tmp_path / "set", class_files(("bag", "coat", "dress")))
    done = prepare(root, tmp_path / "out.zip", encoding=encoding)
    assert (done.num_images, done.image_shape, done.num_classes) == (9, (3, 8, 8), 3)
    before, after = ImageDataset(root), ImageDataset(tmp_path / "out.zip")
    assert after.class_names == ("bag", "coat", "dress")
    for first, second in zip(before.load_all(), after.load_all(), strict=True):
        assert torch.equal(first, second)
    with zipfile.ZipFile(done.path) as archive:
        names = archive.namelist()
        assert names[0] == f"00000/img00000000.{encoding}"
        assert names[-1] == "dataset.json"
        assert json.loads(archive.read("dataset.json"))["labels"][-1] == [names[-2], 2]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert check(done.path).trainable


def test_fashion_mnist_padded_and_its_names(fashion_mnist: Path, tmp_path: Path) -> None:
    source = open_source(fashion_mnist, "test")
    assert source.labels is not None
    source._pixels, source.labels = source.read_all()[:300], source.labels[:300]  # type: ignore[attr-defined, index]
    conform = Conform(image_size=32, fit="pad")
    prepare(source, tmp_path / "fm.zip", conform=conform)
    data = ImageDataset(tmp_path / "fm.zip")
    assert data.image_shape == (1, 32, 32)
    assert data.class_names is not None
    assert data.class_names[7] == "sneaker"
    images, labels = data.load_all()
    whole, _ = ImageDataset(fashion_mnist, image_size=32, fit="pad", split="test").load_all()
    assert torch.equal(images, whole[:300])
    assert labels.tolist() == source.labels.tolist()


def test_equal_bytes_whatever_the_time_and_order_of_files(tmp_path: Path) -> None:
    files = class_files()
    first = prepare(write_folder(tmp_path / "a", files), tmp_path / "a.zip").path
    backwards = dict(reversed(files.items()))
    second = prepare(write_zip(tmp_path / "b_in.zip", backwards), tmp_path / "b.zip").path
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", class_files(count=60))
    write_folder(root, {"bag/7.png": b"broken"})
    done: list[int] = []
    alone = prepare(root, tmp_path / "1.zip", skip_broken=True)
    many = prepare(root, tmp_path / "3.zip", workers=3, skip_broken=True, progress=done.append)
    assert alone.path.read_bytes() == many.path.read_bytes()
    assert alone.skipped == many.skipped
    assert sum(done) == 120


def test_mixed_images_are_made_alike(tmp_path: Path) -> None:
    files = {
        "a/wide.png": encoded(picture(0, (30, 10))),
        "a/grey.jpg": encoded(picture(1, (8, 8), "L"), "jpeg"),
        "b/clear.webp": encoded(picture(2, (9, 20), "RGBA"), "webp", lossless=True),
    }
    conform = Conform(image_size=8, fit="crop", channels=3, alpha="white")
    prepare(write_folder(tmp_path / "set", files), tmp_path / "out.zip", conform=conform)
    report = check(tmp_path / "out.zip")
    assert report.trainable
    assert report.sizes == {"8x8": 3}
    assert report.modes == {"RGB": 3}
    assert report.classes == {"a": 2, "b": 1}


def test_no_labels_stay_none(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"a.png": encoded(picture(0))})
    prepare(root, tmp_path / "out.zip")
    assert open_source(tmp_path / "out.zip").labels is None


def test_packing_what_was_packed_changes_nothing(tmp_path: Path) -> None:
    pairs = [[name, i % 2] for i, name in enumerate(class_files())]
    text = manifest(pairs, class_names=["x", "y", "z"])
    files: dict[str, bytes | str] = {**class_files(), "dataset.json": text}
    once = prepare(write_folder(tmp_path / "set", files), tmp_path / "1.zip").path
    twice = prepare(once, tmp_path / "2.zip").path
    assert once.read_bytes() == twice.read_bytes()


def test_a_broken_image_stops_it_and_leaves_nothing(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {**class_files(), "bag/x.png": b"broken"})
    out = tmp_path / "out.zip"
    with pytest.raises(DataError, match=r"bag/x\.png .* --skip-broken"):
        prepare(root, out)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # not even a temporary file
    done = prepare(root, out, skip_broken=True)
    assert done.num_images == 6
    assert len(done.skipped) == 1
    assert "bag/x.png" in done.skipped[0]
    names = [open_source(out).name(i) for i in range(6)]
    assert names[-1] == "00000/img00000005.png"  # numbered without a gap


def test_a_failure_leaves_the_old_zip_as_it_was(tmp_path: Path) -> None:
    out = prepare(write_folder(tmp_path / "a", class_files()), tmp_path / "out.zip").path
    before = out.read_bytes()
    broken = write_folder(tmp_path / "b", {"bag/x.png": b"broken"})
    with pytest.raises(OutputError, match="there already"):
        prepare(broken, out)
    with pytest.raises(DataError):
        prepare(broken, out, overwrite=True)
    assert out.read_bytes() == before
    with pytest.raises(DataError, match="nothing to pack"):
        prepare(broken, out, overwrite=True, skip_broken=True)
    prepare(out, out, overwrite=True)  # onto itself: read before it is replaced
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"coat/z.png": encoded(picture(9, (9, 8)))}, r"z\.png is 9x8 but the first image 8x8"),
        ({"coat/z.png": encoded(picture(9, mode="L"))}, r"z\.png has 1 channels"),
        ({"coat/z.png": encoded(picture(9, mode="RGBA"))}, r"z\.png is partly transparent"),
        ({"z.png": encoded(picture(9))}, "beside the folders"),
    ],
)
def test_images_that_differ_are_refused(
    tmp_path: Path, extra: dict[str, bytes], sentence: str
) -> None:
    root = write_folder(tmp_path / "set", {**class_files(), **extra})
    with pytest.raises(DataError, match=sentence):
        prepare(root, tmp_path / "out.zip", skip_broken=True)  # they are not broken
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("dest", "options", "error", "sentence"),
    [
        ("out.tar", {}, ConfigError, "does not end in .zip"),
        ("out.zip", {"encoding": "jpeg"}, ConfigError, "lossless"),
        ("out.zip", {"workers": 0}, ConfigError, "workers"),
        ("folder.zip", {"overwrite": True}, OutputError, "choose another name"),
        ("file/out.zip", {}, OutputError, "cannot write"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path,
    dest: str,
    options: dict[str, object],
    error: type[Exception],
    sentence: str,
) -> None:
    root = write_folder(tmp_path / "set", class_files())
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(error, match=sentence):
        prepare(root, tmp_path / dest, **options)  # type: ignore[arg-type]


def test_lossless_means_lossless(tmp_path: Path) -> None:
    """Noise, the hardest case for any compression, in grey and colour."""
    for mode, encoding in (("L", "png"), ("RGB", "png"), ("RGB", "webp")):
        root = write_folder(tmp_path / mode, {"a.png": encoded(picture(0, (32, 32), mode))})
        out = prepare(root, tmp_path / f"{mode}{encoding}.zip", encoding=encoding).path
        assert np.array_equal(open_source(out).read(0), open_source(root).read(0))


def test_grey_as_webp_is_refused_because_it_would_come_back_as_rgb(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"a.png": encoded(picture(0, mode="L"))})
    with pytest.raises(ConfigError, match="no grey"):
        prepare(root, tmp_path / "out.zip", encoding="webp")
    done = prepare(root, tmp_path / "out.zip", encoding="webp", conform=Conform(channels=3))
    assert open_source(done.path).read(0).shape == done.image_shape == (3, 8, 8)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the end of the disk."""
    root = write_folder(tmp_path / "set", class_files(count=50))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            prepare(root, tmp_path / "out.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
