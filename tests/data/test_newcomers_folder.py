"""A folder with every trouble of a newcomer's: each is named, and what is advised works."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import class_files, encoded, picture, write_folder

from genlab import cli
from genlab.data.check.checks import Report, check
from genlab.data.check.contact_sheet import contact_sheet
from genlab.data.conform import Conform
from genlab.data.dataset import ImageDataset
from genlab.data.prepare import prepare
from genlab.data.sources.opening import open_source
from genlab.errors import DataError

SETTINGS = Conform(image_size=16, fit="crop", channels=3, alpha="white")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(5, (20, 12)), exif=exif)


def deep() -> bytes:
    values = np.random.default_rng(6).integers(0, 65536, (16, 16)).astype(np.uint16)
    return encoded(Image.fromarray(values))


def clear() -> bytes:
    image = picture(3, (16, 16), "RGBA")
    image.putalpha(128)
    return encoded(image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, one with an umlaut."""
    tree = {
        **{f"Äpfel/{name}": data for name, data in class_files(("a",), count=10).items()},
        **{f"Birnen/{i}.png": encoded(picture(50 + i, (16, 16))) for i in range(10)},
        "Birnen/grey.png": encoded(picture(1, (16, 16), "L")),
        "Birnen/clear.png": clear(),
        "Birnen/palette.png": encoded(picture(4, (16, 16)).convert("P")),
        "Birnen/cmyk.jpg": encoded(picture(2, (16, 16)).convert("CMYK"), "jpeg"),
        "Birnen/turned.png": turned(),
        "Birnen/deep.png": deep(),
        "Birnen/cut.png": encoded(picture(8, (64, 64)))[:900],
        "Birnen/notes.xcf": b"gimp",
        "Birnen/.DS_Store": b"junk",
        "Birnen/Thumbs.db": b"junk",
        "README.txt": b"my fruit",
    }
    tree = {name.replace("Äpfel/a/", "Äpfel/"): data for name, data in tree.items()}
    root = write_folder(tmp_path / "Obst", tree)
    os.mkfifo(root / "Birnen" / "pipe.png")
    (root / "Birnen" / "zero.png").symlink_to("/dev/zero")
    return root


def found(report: Report) -> dict[str, str]:
    return {finding.code: finding.message for finding in report.findings}


def test_check_names_every_trouble_and_its_file(folder: Path) -> None:
    report = check(folder)
    messages = found(report)
    named = {
        "broken": "Birnen/cut.png",
        "mixed-sizes": "Birnen/turned.png",
        "mixed-channels": "Birnen/deep.png",
        "transparent": "Birnen/clear.png",
        "palette": "Birnen/palette.png",
        "lossy": "Birnen/cmyk.jpg",
        "turned": "Birnen/turned.png",
        "deep": "Birnen/deep.png",
        "not-images": "Birnen/notes.xcf",
        "special": "Birnen/pipe.png, Birnen/zero.png",
    }
    assert {code: name in messages[code] for code, name in named.items()} == dict.fromkeys(
        named, True
    )
    assert report.classes == {"Birnen": 17, "Äpfel": 10}
    assert not report.trainable


def test_the_settings_that_check_advises_leave_only_the_broken_file(folder: Path) -> None:
    errors = [f for f in check(folder, conform=SETTINGS).findings if f.level == "error"]
    assert [finding.code for finding in errors] == ["broken"]
    with pytest.raises(DataError, match=r"cut\.png.*--skip-broken"):
        prepare(folder, folder.parent / "Obst.zip", conform=SETTINGS)
    done = prepare(folder, folder.parent / "Obst.zip", conform=SETTINGS, skip_broken=True)
    assert (done.num_images, done.num_classes, len(done.skipped)) == (26, 2, 1)
    again = check(done.path)
    assert again.trainable
    assert again.classes == {"Birnen": 16, "Äpfel": 10}
    images, _ = ImageDataset(done.path).load_all()
    assert images.shape == (26, 3, 16, 16)


def test_each_refusal_on_the_way_to_training_names_a_setting_that_helps(folder: Path) -> None:
    (folder / "Birnen" / "cut.png").unlink()
    settings: dict[str, object] = {}
    for advice, more in (
        (r"clear\.png .*alpha=white or alpha=black", {"alpha": "white"}),
        (r"deep\.png .*set channels=3", {"channels": 3}),
        (r"turned\.png .*set image_size=16 and fit=crop", {"image_size": 16, "fit": "crop"}),
    ):
        with pytest.raises(DataError, match=advice):
            ImageDataset(folder, **settings).load_all(threads=1)  # type: ignore[arg-type]
        settings |= more
    assert len(ImageDataset(folder, **settings).load_all()[0]) == 26  # type: ignore[arg-type]


def test_the_sheet_shows_the_images_as_the_settings_make_them(folder: Path) -> None:
    source = open_source(folder)
    cropped = contact_sheet(source, SETTINGS)
    assert cropped.size == contact_sheet(source, Conform(image_size=16)).size
    stretched = contact_sheet(source, Conform(image_size=16, fit="resize"))
    padded = contact_sheet(source, Conform(image_size=16, fit="pad"))
    assert len({sheet.tobytes() for sheet in (cropped, stretched, padded)}) == 3


def test_the_command_line_says_the_same(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sheet = folder.parent / "look.png"
    options = ["--size", "16", "--fit", "crop", "--channels", "3", "--alpha", "white"]
    assert cli.main(["data", "check", str(folder), *options, "--grid", str(sheet)]) == 2
    out = capfd.readouterr().out
    assert "cannot be trained on like this: 1 error" in out
    assert "Äpfel" in out
    assert sheet.is_file()
    zipped = str(folder.parent / "Obst.zip")
    assert cli.main(["data", "prepare", str(folder), zipped, *options, "--skip-broken"]) == 0
    captured = capfd.readouterr()
    assert "26 images, 16x16 RGB, 2 classes" in captured.out
    assert "left out" in captured.err
    assert "pipe" in captured.err
