"""Grids and animations."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFont import FreeTypeFont

from genlab.data.writing import fonts, pictures
from genlab.data.writing.fonts import pen_for
from genlab.data.writing.pictures import grid


def shades(values: list[int], channels: int = 1, size: int = 8) -> list[np.ndarray]:
    return [np.full((size, size, channels), value, np.uint8) for value in values]


def tiles(page: Image.Image, value: int) -> np.ndarray:
    """Where the page shows a shade: whether each pixel has it."""
    return (np.asarray(page) == value).all(-1)


def test_every_image_is_shown_once_and_enlarged() -> None:
    page = pictures.grid(shades([40, 80, 120, 160, 200]))
    for value in (40, 80, 120, 160, 200):
        assert tiles(page, value).sum() == pictures.MIN_TILE**2


def test_a_class_has_its_own_row_where_counts_are_equal() -> None:
    labels = [0, 1, 0, 1, 0, 1]
    page = pictures.grid(shades([10 + 40 * c + i for i, c in enumerate(labels)]), labels)
    wide = [tiles(page, 10 + 40 * c + i).sum(1) >= pictures.MIN_TILE for i, c in enumerate(labels)]
    rows = [np.flatnonzero(lines)[0] for lines in wide]
    assert len({rows[i] for i in (0, 2, 4)}) == len({rows[i] for i in (1, 3, 5)}) == 1
    assert rows[0] < rows[1]


def test_names_are_drawn_beside_rows_and_below_tiles() -> None:
    images = shades([100, 100, 100, 100])
    for labels in ([0, 0, 1, 1], [0, 1, 1, 1]):
        named = pictures.grid(images, labels, ["ankle boot", "bag"])
        other = pictures.grid(images, labels, ["ankle bool", "bag"])
        assert named.size == other.size or named.size[1] == other.size[1]
        assert named.tobytes() != other.tobytes()


def test_a_long_name_does_not_widen_the_page() -> None:
    short = pictures.grid(shades([1, 2, 3]), [0, 1, 1], ["a", "b"])
    long = pictures.grid(shades([1, 2, 3]), [0, 1, 1], ["a" * 300, "b"], title="t" * 900)
    assert long.width == short.width


def test_a_long_title_goes_on_in_the_next_line() -> None:
    images, line = shades([100] * 4), 18
    plain = pictures.grid(images, title="heun, seeds 0-3")
    whole = pictures.grid(images, title="edm-fmnist: heun (S_churn 40), 18 steps, cfg 2, seeds 0-3")
    assert whole.width == plain.width
    assert whole.height > plain.height
    assert (whole.height - plain.height) % line == 0
    last = np.asarray(whole.convert("L"))[: whole.height - plain.height + line + 4]
    assert (last[-line:] < 128).any()  # its last line has words
    endless = pictures.grid(images, title="seeds " * 500)
    assert endless.height - plain.height == 5 * line


def test_captions_above_columns_are_whole() -> None:
    row = {"seed 0": shades([50, 60, 70])}
    short = pictures.rows(row, ["a", "b", "c"])
    long = pictures.rows(row, ["a", "euler, 18 steps, guided by cfg 2", "c"])
    assert long.width == short.width
    assert long.height > short.height
    for value in (50, 60, 70):
        assert tiles(long, value).sum() >= pictures.MIN_TILE**2  # nothing is written over an image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("end", pictures.ANIMATION_FORMATS)
def test_an_animation_has_a_frame_for_each_step(tmp_path: Path, channels: int, end: str) -> None:
    frames = [
        pictures.animation_frame(shades([20 * t, 255 - 20 * t], channels), f"step {t}")
        for t in range(6)
    ]
    path = tmp_path / f"animation.{end}"
    pictures.write_animation(path, frames)
    with Image.open(path) as animation:
        assert animation.n_frames == 6  # type: ignore[attr-defined]
        animation.seek(5)
        shown = np.asarray(animation.convert("RGB")).astype(int)
    # GIF has 256 colours a frame, which these frames keep nearly exactly.
    assert np.abs(shown - np.asarray(frames[5]).astype(int)).max() <= 4


def test_pictures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        pictures.write_grid(tmp_path / name, pictures.grid(shades([1, 2, 3]), title="x"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# --- letters that Pillow's own font does not have ----------------------------------------------


def ink(name: str) -> bytes:
    pixels = [np.zeros((8, 8, 1), np.uint8)] * 2
    return grid(pixels, [0, 0], [name]).tobytes()


def test_names_with_umlauts_and_other_letters_are_legible() -> None:
    drawn = {name: ink(name) for name in ("Apfel", "Äpfel", "Öpfel", "\uffff\uffff")}
    missing = drawn.pop("\uffff\uffff")
    assert missing not in drawn.values()
    assert ink("Äpfel") != ink("\uffffpfel")  # not the box of a letter that is missing
    assert ink("A\u0308pfel") == drawn["Äpfel"]  # one character or two


def test_plain_names_do_not_depend_on_the_fonts_of_the_system() -> None:
    font = pen_for(["Ankle boot, 2.5 %"], 12).font
    assert isinstance(font, FreeTypeFont)
    assert font.getname() == ("Aileron", "Regular")


def test_without_fonts_letters_are_spelled_without_their_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    pen = pen_for(["Äpfel, Straße, café, Łódź, 猫"], 12)
    assert pen.spell("Äpfel, Straße, café, Łódź, 猫") == "Apfel, Strasse, cafe, Lodz, ?"
    assert pen.spell("cafe\u0301\tau\nlait") == "cafe au\nlait"
    assert ink("猫")  # drawn all the same


def test_a_font_that_has_the_letters_is_found() -> None:
    pen = pen_for(["Я", "ä"], 12)
    if pen.font == pen_for(["a"], 12).font:
        pytest.skip("this system has no fonts")
    assert pen.spell("Яä") == "Яä"
