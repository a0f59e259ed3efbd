"""Manifests and names of classes that no model can have, and those that only look odd."""

import json
from pathlib import Path

import pytest
from small_sets import class_files, encoded, manifest, picture, write_folder, write_zip

from genlab.data.check.checks import check
from genlab.data.prepare import prepare
from genlab.data.sources.opening import open_source
from genlab.errors import DataError
from genlab.training.config import DataConfig
from genlab.training.loop.batches import Batches

FILES = {f"{i}.png": encoded(picture(i)) for i in range(4)}


def with_labels(*labels: object, **more: object) -> dict[str, bytes | str]:
    pairs = [[name, label] for name, label in zip(FILES, labels, strict=True)]
    return {**FILES, "dataset.json": manifest(pairs, **more)}


@pytest.mark.parametrize("label", [10**6, 3 * 10**9, 2**62, 10**20, 10**400, -1])
def test_a_label_that_no_model_has_is_refused_by_number(tmp_path: Path, label: int) -> None:
    path = write_zip(tmp_path / "set.zip", with_labels(0, 1, 0, label))
    for act in (open_source, lambda source: prepare(source, tmp_path / "out.zip")):
        with pytest.raises(DataError, match=rf"3\.png the label {f'{label:,}'[:60]}.*999,999"):
            act(path)
    [error] = [f for f in check(path).findings if f.level == "error"]
    assert len(error.message) < 400


def test_a_million_classes_are_taken(tmp_path: Path) -> None:
    source = open_source(write_zip(tmp_path / "set.zip", with_labels(0, 1, 0, 10**6 - 1)))
    assert source.num_classes == 10**6


@pytest.mark.parametrize("name", ["\ud800", "a\x1b[2Jb", "line\nbreak", "x" * 1001])
def test_class_names_that_are_no_text_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "set.zip", with_labels(0, 0, 0, 0, class_names=[name]))
    with pytest.raises(DataError, match=r"has the class name .* write another name"):
        open_source(path)
    message = " ".join(f.message for f in check(path).findings)
    assert message.isprintable()
    message.encode()  # what a terminal does


def test_folders_whose_names_are_no_text_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "set" / ("caf\udce9" if number else "tea")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(FILES["0.png"])
    with pytest.raises(DataError, match=r"caf\\udce9', which is no text; rename the folder"):
        open_source(tmp_path / "set")


def test_a_file_whose_name_is_no_text_is_read_and_named_printably(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {"a/0.png": FILES["0.png"]})
    (tmp_path / "set" / "a" / "caf\udce9.png").write_bytes(b"broken")
    report = check(tmp_path / "set")
    assert r"a/caf\udce9.png" in " ".join(f.message for f in report.findings)


def test_names_with_backslashes_are_read_as_windows_writes_them(tmp_path: Path) -> None:
    files = class_files(count=2)
    pairs = [[name.replace("/", "\\"), number] for number, name in enumerate(files)]
    root = write_folder(tmp_path / "set", {**files, "dataset.json": manifest(pairs)})
    source = open_source(root)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 3]


def test_a_real_backslash_in_a_name_stays(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", {"a\\b.png": FILES["0.png"], "a/b.png": FILES["1.png"]})
    pairs = [["a\\b.png", 1], ["a/b.png", 0]]
    (root / "dataset.json").write_text(manifest(pairs))
    source = open_source(root)
    assert source.labels is not None
    named = {source.name(i): int(source.labels[i]) for i in range(2)}
    assert named == {"a\\b.png": 1, "a/b.png": 0}


def test_a_manifest_of_other_names_says_what_it_lists(tmp_path: Path) -> None:
    pairs = [[f"elsewhere/{name}", 0] for name in FILES]
    root = write_folder(tmp_path / "set", {**FILES, "dataset.json": manifest(pairs)})
    with pytest.raises(DataError, match=r"no label for 4 of 4 .*lists elsewhere/0\.png"):
        open_source(root)


def test_training_says_what_check_says_of_classes_without_images(tmp_path: Path) -> None:
    path = str(write_zip(tmp_path / "set.zip", with_labels(0, 5, 900, 0)))
    [said] = [f.message for f in check(path).findings if f.code == "empty-class"]
    assert "898 of 901 labels have no image" in said
    with pytest.warns(UserWarning, match="898 of 901 labels have no image") as caught:
        Batches(DataConfig(path=path), seed=0)
    assert [str(warning.message) for warning in caught] == [said]
    Batches(DataConfig(path=path, labels=False), seed=0)  # nothing to say: no warning is an error


def test_json_that_is_no_manifest_stays_a_sentence(tmp_path: Path) -> None:
    digits = '{"labels": [["0.png", ' + "9" * 5000 + "]]}"
    for text in (digits, json.dumps([1]), "[" * 100_000):
        root = write_folder(tmp_path / "set", {**FILES, "dataset.json": text})
        with pytest.raises(DataError, match=r"dataset\.json"):
            open_source(root)
