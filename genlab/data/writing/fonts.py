"""Text in pictures: a font that has the letters, or the nearest spelling that a font has.

Pillow's own font knows English letters only. For others (umlauts, Cyrillic, Chinese) the fonts of
the system are looked through; what none of them has is written without its marks (``e`` for an
accented one), and at last as a question mark. Pictures with plain names look alike everywhere.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "FreeSans.ttf",
    "Arial.ttf",
    "arial.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
)
"""Looked for in this order: those of Linux, Windows and macOS, the ones with most letters last."""

_SPELLINGS = {
    "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
    "đ": "d", "Đ": "D", "ð": "d", "þ": "th", "\u0131": "i",
    "\u2010": "-", "\u2011": "-", "\u2212": "-",
    "\u00d7": "x",
}  # fmt: skip
"""Letters that Unicode does not take apart."""

_MISSING = "\uffff"
"""No font has a glyph for it."""


@dataclass(frozen=True)
class Pen:
    """A font, and how text is spelled in it.

    Attributes:
        font: of some size.
    """

    font: Font

    def spell(self, text: str) -> str:
        """The text in letters that the font has; lines stay lines."""
        composed = unicodedata.normalize("NFC", text)
        return "".join(self._spelled(letter) for letter in composed)

    def _spelled(self, letter: str) -> str:
        if letter.isspace():
            return letter if letter in "\n " else " "
        if can_draw(self.font, letter):
            return letter
        plain = _SPELLINGS.get(letter) or "".join(
            part
            for part in unicodedata.normalize("NFKD", letter)
            if not unicodedata.combining(part)
        )
        return plain if plain and all(can_draw(self.font, part) for part in plain) else "?"


def pen_for(texts: Iterable[str], size: int) -> Pen:
    """The first font that has all letters, or else the one that has most of them.

    Args:
        texts: to be drawn.
        size: of the font, in pixels.
    """
    composed = unicodedata.normalize("NFC", "".join(texts))
    letters = {letter for letter in composed if not letter.isspace()}
    best, most = _own(size), -1
    for number in range(-1, len(SYSTEM_FONTS)):
        font = _own(size) if number < 0 else _system(SYSTEM_FONTS[number], size)
        count = -1 if font is None else sum(can_draw(font, letter) for letter in letters)
        if font is not None and count > most:
            best, most = font, count
        if most == len(letters):
            break
    return Pen(best)


@cache
def _own(size: int) -> Font:
    return ImageFont.load_default(size)


@cache
def _system(name: str, size: int) -> Font | None:
    for place in (name, *_beside_matplotlib(name)):
        try:
            return ImageFont.truetype(place, size)
        except (OSError, ImportError):  # not on this system; Pillow without FreeType
            continue
    return None


def _beside_matplotlib(name: str) -> list[str]:
    """Where matplotlib, if it is installed, keeps a font of its own."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return []
    return [str(Path(spec.origin).with_name("mpl-data") / "fonts" / "ttf" / name)]


def can_draw(font: Font, letter: str) -> bool:
    """Whether a font has a glyph for a letter."""
    try:
        return _glyph(font, letter) != _glyph(font, _MISSING)
    except UnicodeError:  # a bitmap font has Latin letters only
        return False


@cache
def _glyph(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
