"""Sources that are one array: idx folders and npz files."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import write_idx

from genlab.data.sources.idx import FASHION_MNIST, read_idx
from genlab.data.sources.opening import open_source
from genlab.errors import DataError

IMAGES = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
LABELS = np.array([2, 0, 1, 1], np.uint8)


def idx_folder(root: Path, prefix: str = "train", end: str = "-ubyte.gz") -> Path:
    write_idx(root / f"{prefix}-images-idx3{end}", IMAGES)
    write_idx(root / f"{prefix}-labels-idx1{end}", LABELS)
    return root


def test_fashion_mnist_is_recognised_and_has_its_statistics(fashion_mnist: Path) -> None:
    source = open_source(fashion_mnist)
    assert source.kind == "Fashion-MNIST (idx files)"
    assert source.class_names == FASHION_MNIST
    assert source.class_names[9] == "ankle boot"
    images = source.read_all()
    assert images is not None
    assert images.shape == (60_000, 1, 28, 28)
    share = np.bincount(images.ravel(), minlength=256) / images.size
    values = np.arange(256) / 255
    mean = share @ values
    assert mean == pytest.approx(0.2860, abs=5e-5)
    assert (share @ (values - mean) ** 2) ** 0.5 == pytest.approx(0.3530, abs=5e-5)
    assert source.labels is not None
    assert np.bincount(source.labels).tolist() == [6000] * 10


def test_its_test_split(fashion_mnist: Path) -> None:
    source = open_source(fashion_mnist, "test")
    assert len(source) == 10_000
    assert source.class_names == FASHION_MNIST


@pytest.mark.parametrize("end", ["-ubyte", "-ubyte.gz"])
def test_idx_files_come_back_as_written(tmp_path: Path, end: str) -> None:
    source = open_source(idx_folder(tmp_path, end=end))
    assert source.class_names is None  # not a set that is known
    assert source.num_classes == 3
    assert np.array_equal(source.read(3), IMAGES[3][None])
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
    assert np.array_equal(again.read(3), IMAGES[3][None])
    assert len(pickle.dumps(source)) < 1500  # without the pixels


def test_torchvision_and_kaggle_names_too(tmp_path: Path) -> None:
    write_idx(tmp_path / "t10k-images.idx3-ubyte", IMAGES)
    assert len(open_source(tmp_path, "test")) == 4
    assert open_source(tmp_path, "test").labels is None
    with pytest.raises(DataError, match="splits found: t10k"):
        open_source(tmp_path)


def test_labels_of_another_set_are_refused(tmp_path: Path) -> None:
    idx_folder(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", LABELS[:3])
    with pytest.raises(DataError, match="labels of shape"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG1234", "not an idx file"),
        (struct.pack(">HBBI", 0, 0x0D, 1, 3) + b"\0" * 12, "type 0x0d"),
        (struct.pack(">HBB", 0, 8, 3) + b"\0" * 5, "ends inside its header"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "promises"),
        (struct.pack(">HBBI", 0, 8, 1, 5) + b"1234", "4 instead of 5"),
        (struct.pack(">HBBI", 0, 8, 1, 5) + b"123456", "more than 5"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    for path in (tmp_path / "x-ubyte", tmp_path / "x-ubyte.gz"):
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        with pytest.raises(DataError, match=sentence):
            read_idx(path)


@settings(deadline=None, max_examples=40)
@given(cut=st.floats(0, 0.999))
def test_a_gzip_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "train-images-idx3-ubyte.gz"
    data = write_idx(path, IMAGES).read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(DataError, match=r"truncated|not an idx file|damaged"):
        read_idx(path)


# --- npz --------------------------------------------------------------------------------------


def test_npz_in_the_layout_of_adm(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images, np.array([1, 0, 1]))
    source = open_source(tmp_path / "set.npz")
    assert np.array_equal(source.read(2), images[2].transpose(2, 0, 1))
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1]
    assert source.name(2) == "arr_0[2]"
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own bytes
    assert np.array_equal(again.read(0), source.read(0))


def test_npz_with_other_names_grey_and_compressed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=IMAGES, y=LABELS)
    source = open_source(tmp_path / "set.npz")
    assert source.read(1).shape == (1, 5, 6)
    assert source.labels is not None
    assert source.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3), np.float32)}, r"found arr_0 float32 \(2, 4, 4, 3\)"),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "wanted is arr_0"),
        ({"mean": np.zeros(3)}, "has no images"),
        ({"arr_0": IMAGES, "arr_1": np.array([0, -1, 2, 3])}, "the label -1"),
    ],
)
def test_npz_without_images_says_what_is_there(
    tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str
) -> None:
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=sentence):
        open_source(tmp_path / "set.npz")


def test_pickled_objects_in_an_npz_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", arr_0=IMAGES, arr_1=np.array([{}, [], 1, 2], dtype=object))
    source = open_source(tmp_path / "set.npz")
    assert source.labels is None  # objects are no labels, and nobody unpickled them
    assert len(source) == 4


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, IMAGES)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a sound npz"):
        open_source(path)
