"""What a check finds: one small set for each sin, judged by the codes of the findings."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import class_files, encoded, manifest, picture, write_folder, write_idx, write_zip

from genlab.data.check import rules
from genlab.data.check.checks import Report, check
from genlab.data.check.contact_sheet import contact_sheet
from genlab.data.check.jpeg_traces import looks_like_jpeg
from genlab.data.conform import Conform
from genlab.data.sources.opening import open_source

ALWAYS = {"few-images", "tiny-class"}
"""Every set here is tiny."""


def codes(report: Report) -> dict[str, str]:
    """Code -> level, without what is true of every tiny set."""
    return {f.code: f.level for f in report.findings if f.code not in ALWAYS}


def message(report: Report, code: str) -> str:
    return next(f.message for f in report.findings if f.code == code)


def test_a_sound_set_has_nothing_to_complain_about(tmp_path: Path) -> None:
    report = check(write_folder(tmp_path, class_files(count=12)))
    assert report.trainable
    assert codes(report) == {}
    assert report.num_images == 24
    assert report.classes == {"bag": 12, "coat": 12}
    assert report.sizes == {"8x8": 24}
    assert report.modes == {"RGB": 24}
    assert report.formats == {"PNG": 24}
    assert json.loads(json.dumps(report.to_dict()))["trainable"] is True


def test_real_data_pass(cifar_zip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of CIFAR-10: lossless, no copies, no marks of JPEG."""
    source = open_source(cifar_zip)
    source._names, source.labels = source._names[::250], source.labels[::250]  # type: ignore[attr-defined, index]
    monkeypatch.setattr("genlab.data.check.checks._open", lambda *args: source)
    report = check(cifar_zip)
    assert report.num_images == 100
    assert codes(report) == {}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_wrong_nesting_is_an_error_and_the_images_are_looked_at_all_the_same(
    tmp_path: Path, packed: bool
) -> None:
    files = {f"data/{name}": data for name, data in class_files().items()}
    files["data/bag/9.png"] = b"broken"
    path = write_zip(tmp_path / "s.zip", files) if packed else write_folder(tmp_path / "s", files)
    report = check(path)
    assert not report.trainable
    assert codes(report) == {"nesting": "error", "broken": "error"}
    assert "give that folder instead" in message(report, "nesting")
    assert report.num_images == 7


def test_images_beside_class_folders(tmp_path: Path) -> None:
    report = check(write_folder(tmp_path, {**class_files(), "x.png": encoded(picture(99))}))
    assert codes(report) == {"mixed-nesting": "error"}


def test_class_folders_nested_twice(tmp_path: Path) -> None:
    files = {f"{k.split('/')[0]}/{k}": v for k, v in class_files().items()}
    report = check(write_folder(tmp_path, files))
    assert codes(report) == {"nesting": "warning"}
    assert "bag/bag/" in message(report, "nesting")
    assert report.classes == {"bag": 3, "coat": 3}


def test_classes_within_classes(tmp_path: Path) -> None:
    files = class_files(("animal/cat", "animal/dog", "plant/oak"))
    report = check(write_folder(tmp_path, files))
    assert codes(report) == {"nesting": "warning"}
    assert "animal/cat/" in message(report, "nesting")


def test_no_labels_and_one_label(tmp_path: Path) -> None:
    flat = write_folder(tmp_path / "flat", {f"{i}.png": encoded(picture(i)) for i in range(3)})
    assert codes(check(flat)) == {"no-labels": "warning"}
    one = write_folder(tmp_path / "one", class_files(("bag",)))
    assert codes(check(one)) == {"one-label": "warning"}
    assert check(flat).classes is None


def test_numbers_as_class_names(tmp_path: Path) -> None:
    report = check(write_folder(tmp_path, class_files(("0", "1", "2", "10"), count=1)))
    assert codes(report) == {"numeric-classes": "warning"}
    assert "10 gets label 2" in message(report, "numeric-classes")
    assert codes(check(write_folder(tmp_path / "b", class_files(("0", "1"))))) == {}


def test_gaps_between_labels_and_empty_folders(tmp_path: Path) -> None:
    files = {"a.png": encoded(picture(0)), "b.png": encoded(picture(1))}
    text = manifest([["a.png", 0], ["b.png", 2]])
    report = check(write_folder(tmp_path / "gap", {**files, "dataset.json": text}))
    assert codes(report) == {"empty-class": "warning"}
    assert report.classes == {"0": 1, "1": 0, "2": 1}
    folders = write_folder(tmp_path / "empty", {**class_files(), "dress/": b""})
    assert codes(check(folders)) == {"empty-class": "warning"}


def test_tiny_and_uneven_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = class_files(("bag",), count=12) | {"coat/0.png": encoded(picture(500))}
    report = check(write_folder(tmp_path, files))
    assert "coat (1)" in message(report, "tiny-class")
    monkeypatch.setattr(rules, "FEW_IN_CLASS", 1)
    assert codes(check(tmp_path)) == {"uneven-classes": "note"}


def test_mixed_sizes_and_what_a_fit_makes_of_them(tmp_path: Path) -> None:
    files = {**class_files(), "bag/x.png": encoded(picture(9, (16, 8)))}
    root = write_folder(tmp_path, files)
    report = check(root)
    assert codes(report) == {"mixed-sizes": "error"}
    assert "8x8 (6), 16x8 (1), for instance bag/x.png" in message(report, "mixed-sizes")
    fitted = check(root, conform=Conform(image_size=8, fit="crop"))
    assert codes(fitted) == {"mixed-sizes": "note"}
    assert fitted.trainable


@pytest.mark.parametrize(
    ("size", "wanted", "code", "level"),
    [
        ((8, 16), None, "not-square", "error"),
        ((28, 28), None, "odd-size", "warning"),
        ((8, 8), 16, "wrong-size", "error"),
    ],
)
def test_one_size_that_does_not_suit(
    tmp_path: Path, size: tuple[int, int], wanted: int | None, code: str, level: str
) -> None:
    write_folder(
        tmp_path,
        {
            f"{c}/{i}.png": encoded(picture(9 * i + (c == "a"), size))
            for c in "ab"
            for i in range(3)
        },
    )
    assert codes(check(tmp_path, conform=Conform(image_size=wanted))) == {code: level}


def test_grey_and_colour_mixed(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {**class_files(), "bag/g.png": encoded(picture(9, mode="L"))})
    report = check(root)
    assert codes(report) == {"mixed-channels": "error"}
    assert "bag/g.png" in message(report, "mixed-channels")
    assert codes(check(root, conform=Conform(channels=3))) == {"mixed-channels": "note"}


def test_grey_stored_as_rgb(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(picture(i, mode="L").convert("RGB")) for i in range(3)}
    assert codes(check(write_folder(tmp_path, files))) == {
        "no-labels": "warning",
        "grey-as-rgb": "warning",
    }


def test_transparency(tmp_path: Path) -> None:
    opaque = encoded(picture(50).convert("RGBA"))
    root = write_folder(tmp_path, {**class_files(), "bag/o.png": opaque})
    assert codes(check(root)) == {"opaque-alpha": "note"}
    write_folder(root, {"bag/t.png": encoded(picture(51, mode="RGBA"))})
    report = check(root)
    assert codes(report) == {"opaque-alpha": "note", "transparent": "error"}
    assert "bag/t.png" in message(report, "transparent")
    assert check(root, conform=Conform(alpha="white")).trainable


def test_palettes(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {**class_files(), "bag/p.png": encoded(picture(9).convert("P"))})
    assert codes(check(root)) == {"palette": "note"}


def test_broken_files_are_counted_and_the_first_is_explained(tmp_path: Path) -> None:
    files = {**class_files(), "bag/x.png": b"", "coat/y.png": encoded(picture(0, (64, 64)))[:2000]}
    report = check(write_folder(tmp_path, files))
    assert codes(report) == {"broken": "error"}
    text = message(report, "broken")
    assert text.startswith("2 of 8 images cannot be read: bag/x.png, coat/y.png (the first is an ")
    assert "--skip-broken" in text


def test_all_files_broken(tmp_path: Path) -> None:
    report = check(write_folder(tmp_path, {"a/1.png": b"x", "b/2.png": b"y"}))
    assert codes(report) == {"broken": "error"}


def test_copies_and_clashing_labels(tmp_path: Path) -> None:
    files = class_files()
    files["bag/copy.png"] = files["bag/0.png"]
    report = check(write_folder(tmp_path, files))
    assert codes(report) == {"duplicates": "warning"}
    assert "bag/0.png = bag/copy.png" in message(report, "duplicates")
    # Equal pixels in another file format are found, too.
    same = encoded(Image.open(io.BytesIO(files["bag/1.png"])), "webp", lossless=True)
    report = check(write_folder(tmp_path, {"coat/same.webp": same}))
    assert codes(report) == {"duplicates": "warning", "label-clash": "warning"}
    assert "bag/1.png = coat/same.webp" in message(report, "label-clash")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    report = check(write_folder(tmp_path, {**class_files(), "bag/film.mp4": b"x"}))
    assert codes(report) == {"not-images": "warning"}


@pytest.mark.parametrize(
    ("kind", "options", "lossy"),
    [
        ("jpeg", {}, True),
        ("webp", {"quality": 80}, True),
        ("webp", {"lossless": True}, False),
        ("webp", {"lossless": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}, False),
        ("webp", {"quality": 80, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}, True),
        ("png", {}, False),
    ],
)
def test_lossy_files(tmp_path: Path, kind: str, options: dict[str, object], lossy: bool) -> None:
    files = {
        f"{c}/{i}.{kind}": encoded(picture(10 * i + ord(c)), kind, **options)
        for c in "ab"
        for i in range(3)
    }
    report = check(write_folder(tmp_path, files))
    assert codes(report) == ({"lossy": "warning"} if lossy else {})


def test_animations_blank_images_and_turned_ones(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = encoded(picture(70), "webp", save_all=True, append_images=[picture(71)], lossless=True)
    extra = {
        "bag/film.webp": frames,
        "bag/turned.png": encoded(picture(72), exif=exif),
        "bag/white.png": encoded(Image.new("RGB", (8, 8), "white")),
    }
    report = check(write_folder(tmp_path, {**class_files(), **extra}))
    assert codes(report) == {"animated": "warning", "blank": "warning", "turned": "note"}


def test_jpeg_inside_lossless_files_is_noticed(shared: Path) -> None:
    path = shared / "data" / "cifar10-test-a.zip"
    if not path.exists():
        pytest.skip("no CIFAR-10 in the folder of shared data")
    source = open_source(path)
    images = [source.read(i) for i in range(0, 5000, 40)]
    assert not looks_like_jpeg(images)
    for quality in (50, 75, 85):
        assert looks_like_jpeg([through_jpeg(image, quality) for image in images])


def test_jpeg_inside_grey_images_with_clipping(fashion_mnist: Path) -> None:
    source = open_source(fashion_mnist, "test")
    images = [source.read(i) for i in range(300)]
    assert not looks_like_jpeg(images)
    assert looks_like_jpeg([through_jpeg(image, 75) for image in images])


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    again = np.asarray(
        Image.open(io.BytesIO(encoded(Image.fromarray(pixels), "jpeg", quality=quality)))
    )
    return again[None] if again.ndim == 2 else again.transpose(2, 0, 1)


def test_no_traces_in_nothing() -> None:
    assert not looks_like_jpeg([])
    assert not looks_like_jpeg([np.zeros((3, 4, 4), np.uint8)])


def test_arrays_and_missing_paths(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (20, 8, 8), dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 2)
    report = check(tmp_path)
    assert codes(report) == {}
    assert report.kind == "idx files"
    assert report.modes == {"L": 20}
    for path, code in ((tmp_path / "nowhere", "unreadable"), (Path(__file__), "unreadable")):
        assert codes(check(path)) == {code: "error"}


def test_an_empty_folder(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert codes(report) == {"no-images": "error"}
    assert report.num_images == 0


def test_names_that_two_classes_share(tmp_path: Path) -> None:
    files = {"a.png": encoded(picture(0)), "b.png": encoded(picture(1))}
    text = manifest([["a.png", 0], ["b.png", 1]], class_names=["crane", "crane"])
    report = check(write_folder(tmp_path, {**files, "dataset.json": text}))
    assert report.classes == {"crane (0)": 1, "crane (1)": 1}


def test_every_finding_is_one_sentence_with_a_cure(tmp_path: Path) -> None:
    """The worst set of all: every sentence stays on one line and says what to do."""
    files = {
        **class_files(("0", "10"), kind="jpg"),
        "0/x.png": b"",
        "0/big.png": encoded(picture(9, (16, 12), mode="RGBA")),
        "10/grey.png": encoded(picture(8, mode="L")),
        "10/copy.png": encoded(picture(8, mode="L")),
        "0/film.mp4": b"",
        "7/": b"",
    }
    report = check(write_folder(tmp_path, files))
    assert len(report.findings) > 8
    levels = [f.level for f in report.findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    for finding in report.findings:
        assert "\n" not in finding.message
        assert not finding.message.endswith(".")
        assert str(tmp_path) not in finding.message


# --- contact sheet ----------------------------------------------------------------------------


def test_a_contact_sheet_shows_each_class(tmp_path: Path) -> None:
    files = class_files(("bag", "coat", "dress"), count=9)
    files["bag/broken.png"] = b""
    files["coat/wide.png"] = encoded(picture(7, (30, 10), mode="RGBA"))
    sheet = contact_sheet(open_source(write_folder(tmp_path, files)))
    assert sheet.mode == "RGB"
    assert sheet.height > 3 * 64
    assert sheet.width > 8 * 64


def test_a_contact_sheet_without_labels_or_with_lonely_classes(tmp_path: Path) -> None:
    flat = write_folder(tmp_path / "a", {f"{i}.png": encoded(picture(i)) for i in range(70)})
    assert contact_sheet(open_source(flat)).width >= 8 * 64
    lonely = write_folder(tmp_path / "b", class_files(count=1))
    assert contact_sheet(open_source(lonely)).height > 2 * 64
