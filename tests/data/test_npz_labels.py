"""Which array of an npz holds the labels, and headers that claim what is not there."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genlab.data.check.checks import check
from genlab.data.dataset import ImageDataset
from genlab.data.sources.npy import read_npy
from genlab.data.sources.opening import open_source
from genlab.errors import DataError, EvaluationError
from genlab.eval.references.files import read_reference

IMAGES = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
CLASSES = [0, 1, 2, 0, 1, 2]


def saved(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "set.npz"
    stored: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
    np.savez(path, **stored)
    return path


def labels_of(path: Path, split: str = "train") -> list[int] | None:
    labels = open_source(path, split).labels
    return None if labels is None else labels.tolist()


@pytest.mark.parametrize("name", ["labels", "label", "y", "targets", "class_idx", "Y", "classes"])
@pytest.mark.parametrize("other", ["a_index", "seeds", "zz"])
def test_labels_are_found_by_name_before_what_merely_fits(
    tmp_path: Path, name: str, other: str
) -> None:
    arrays = {other: np.arange(6), name: CLASSES}
    for order in (arrays, dict(reversed(arrays.items()))):
        assert labels_of(saved(tmp_path, images=IMAGES, **order)) == CLASSES


@pytest.mark.parametrize("name", ["seeds", "index", "ids", "indices", "timesteps"])
def test_seeds_and_indices_are_no_labels_and_that_is_said(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, images=IMAGES, **{name: np.arange(100, 106)})
    assert labels_of(path) is None
    [note] = [f for f in check(path).findings if f.code == "labels"]
    assert name in note.message
    assert "'labels'" in note.message
    with pytest.raises(DataError, match=f"no labels.*{name}.*labels=false"):
        ImageDataset(path)


def test_the_layout_of_adm_needs_no_names(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, IMAGES, CLASSES)
    assert labels_of(path) == CLASSES


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (CLASSES[:5], "5 entries for 6 images"),
        (np.zeros((2, 3)), "2 x 3 for 6 images"),
        (np.full((6, 3), 0.4), "not one-hot"),
        (np.ones((6, 3), int), "not one-hot"),
        (np.array([0, 1, 2, 0, 1, 2.5]), "holds 2.5"),
        (np.array([0, 1, 2, 0, 1, np.nan]), "holds nan"),
        (np.array([0, -3, 2, 0, 1, 2]), "the label -3"),
        (np.array([0, 1, 2, 0, 1, 10**6]), "the label 1,000,000"),
        (np.array([0, 1, 2, 0, 1, 2**63], np.uint64), "the label 9,223,372,036,854,775,808"),
        (np.zeros((6, 2, 2), int), "6 x 2 x 2"),
        (np.zeros(6, "M8[s]"), "datetime64"),
        (np.array(7), r"\(\) for 6 images"),
        (np.array(["a", "b", "\ud800", "a", "a", "a"]), "no text"),
    ],
)
@pytest.mark.parametrize("name", ["labels", "arr_1"])
def test_labels_that_do_not_fit_are_refused_with_the_reason(
    tmp_path: Path, name: str, values: object, reason: str
) -> None:
    path = saved(tmp_path, arr_0=IMAGES, **{name: values})
    with pytest.raises(DataError, match=rf"set\.npz: {name} .*{reason}"):
        open_source(path)
    [finding] = [f for f in check(path).findings if f.level == "error"]
    assert "whole numbers" in finding.message


@pytest.mark.parametrize("kind", [np.float32, np.uint8, bool])
def test_one_hot_rows_are_read_as_classes(tmp_path: Path, kind: type) -> None:
    rows: Any = np.eye(3, dtype=kind)[CLASSES]
    assert labels_of(saved(tmp_path, arr_0=IMAGES, arr_1=rows)) == CLASSES


def test_whole_floats_and_columns_are_read_as_classes(tmp_path: Path) -> None:
    assert labels_of(saved(tmp_path, x=IMAGES, y=np.array(CLASSES, float))) == CLASSES
    assert labels_of(saved(tmp_path, x=IMAGES, y=np.array(CLASSES)[:, None])) == CLASSES


@pytest.mark.parametrize("kind", ["U", "S"])
def test_names_are_read_as_classes(tmp_path: Path, kind: str) -> None:
    source = open_source(saved(tmp_path, x=IMAGES, y=np.array(list("babcab"), kind)))
    assert source.class_names == ("a", "b", "c")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1, 2, 0, 1]


def test_parts_are_told_by_their_names(tmp_path: Path) -> None:
    half = {"x_test": IMAGES[:3], "y_test": CLASSES[:3]}
    path = saved(tmp_path, x_train=IMAGES[3:], y_train=CLASSES[::-1][3:], **half)
    assert labels_of(path, "test") == [0, 1, 2]
    assert labels_of(path) == [2, 1, 0]
    assert open_source(path, "test").split == "test"
    with pytest.raises(DataError, match="several arrays that could be the images"):
        open_source(saved(tmp_path, a=IMAGES, b=IMAGES))
    with pytest.raises(DataError, match="could all be the labels"):
        open_source(saved(tmp_path, x=IMAGES, fine_labels=CLASSES, coarse_labels=CLASSES))


# --- headers ----------------------------------------------------------------------------------


def with_header(path: Path, header: str, data: bytes = b"x" * 1000) -> Path:
    body = io.BytesIO()
    body.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", body.getvalue())
    return path


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("(-4, 8, 8, 3)", "has the shape"),
        (f"({'9' * 50}, 8, 8, 3)", "promises 19,2|promises 19,1"),
        ("(4294967296, 4294967296, 4294967296, 3)", "promises 237,684"),
        ("(6, 8, 8, 3)", "promises 1,152 bytes, there are 1,000"),
        ("(4, 8.5, 8, 3)", "cannot be read|has the shape"),
        ("(" * 150, "cannot be read"),
        ("-" * 5000 + "1", "cannot be read"),
        (f"({'9' * 5000},)", "cannot be read"),
    ],
)
def test_what_a_header_claims_is_held_against_the_file(
    tmp_path: Path, shape: str, reason: str
) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n"
    path = with_header(tmp_path / "set.npz", header)
    with pytest.raises(DataError, match=f"not a sound npz file.*{reason}"):
        open_source(path)
    assert not check(path).trainable


def test_a_member_larger_than_its_file_could_hold_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, arr_0=IMAGES)
    data = bytearray(path.read_bytes())
    header = np.lib.format.header_data_from_array_1_0(IMAGES) | {"shape": (2**20, 2**10, 8, 3)}
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, header)
    promised = (2**20 * 2**10 * 24 + 128).to_bytes(8, "little")
    start = data.index(b"\x93NUMPY")
    data[start : start + 128] = text.getvalue()
    size = (IMAGES.nbytes + 128).to_bytes(8, "little")
    path.write_bytes(bytes(data).replace(size, promised))
    with pytest.raises(DataError, match="fetch it again"):
        open_source(path)


@pytest.mark.parametrize("shape", ["(-1,)", "(1000000000000,)", f"({'9' * 50},)", "(3,"])
def test_an_array_in_a_file_of_its_own_is_held_against_its_size(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape} }}\n".encode()
    path = tmp_path / "labels.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"x" * 24)
    with pytest.raises(ValueError, match="labels"):
        read_npy(path)
    with pytest.raises(ValueError, match="labels"):
        read_npy(path, mapped=True)
    np.save(path, np.arange(3))
    assert read_npy(path).tolist() == read_npy(path, mapped=True).tolist() == [0, 1, 2]


def test_statistics_with_a_damaged_header_are_one_sentence(tmp_path: Path) -> None:
    path = with_header(tmp_path / "ref.npz", "{'descr': '<f8', 'shape': (-4, 8), }\n")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("mu.npy", b"")
    with pytest.raises(EvaluationError, match=r"ref\.npz cannot be read as npz"):
        read_reference(path)
