"""Decode an image file into pixels, with properties of the file."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from genlab.data.sources.deep import deep_mode, is_deep, read_deep
from genlab.errors import DataError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
)
"""Endings, in lower case, of the files that are taken for images."""

ORIENTATION = 0x0112
"""The EXIF tag."""

_GREY = {"1", "L"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what sets the image upright."""


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Attributes:
        pixels: (C, H, W), upright; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        mode: how the file stores them, in Pillow's words (``L``, ``RGB``, ``P``, ...).
        format: ``PNG``, ``JPEG``, ``WEBP``, ...
        lossy: whether the file's compression loses detail.
        animated: whether the file holds more than the one frame that is read.
        turned: whether the file asks to be turned or mirrored (EXIF), which was done.
        deep: whether it has 16 bits a channel, which were rounded to 8.
    """

    pixels: UInt8[np.ndarray, "C H W"]
    mode: str
    format: str
    lossy: bool
    animated: bool
    turned: bool
    deep: bool = False


def decode(data: bytes, name: str) -> Picture:
    """Decode an image file.

    Args:
        data: the whole file.
        name: what messages call it.

    Raises:
        DataError: not an image, truncated, or with more than 16 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _read(image, data, name)
    except DataError:
        raise
    except Exception as error:  # a decoder fed with damaged bytes raises whatever it likes
        raise DataError(f"{name} {_reason(error, data)}; replace or remove it") from error


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "is an empty file"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return "claims to have far too many pixels for a training image"
    return f"is a damaged image ({error})"


def _read(image: Image.Image, data: bytes, name: str) -> Picture:
    deep, kind = is_deep(image), image.format or "?"
    mode = deep_mode(image) if deep else image.mode
    animated = getattr(image, "n_frames", 1) > 1
    shallow = read_deep(image, data, name) if deep else image
    image.load()
    turn = _TURNS.get(_orientation(image))
    plain = _plain(shallow)
    pixels = np.asarray(plain if turn is None else plain.transpose(turn))
    return Picture(
        pixels=pixels[None]
        if pixels.ndim == 2
        else np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        mode=mode,
        format=kind,
        lossy=_is_lossy(kind, data),
        animated=animated,
        turned=turn is not None,
        deep=deep,
    )


def _orientation(image: Image.Image) -> int:
    """How the file asks to be turned, 1 to 8; 1 is upright, and what odd metadata count as."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata raise whatever they like; the pixels are sound
        return 1


def _plain(image: Image.Image) -> Image.Image:
    """Any mode as grey, grey with alpha, RGB or RGB with alpha."""
    clear = "transparency" in image.info or image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}
    grey = image.mode in _GREY or image.mode in {"LA", "La"}
    modes = {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}
    mode = modes[grey, clear]
    if image.mode == mode:
        return image
    if image.mode == "La":  # Pillow converts premultiplied alpha only step by step
        return image.convert("LA")
    return image.convert(mode)


def _is_lossy(kind: str, data: bytes) -> bool:
    if kind == "WEBP":
        return _is_lossy_webp(data)
    return kind in {"JPEG", "MPO", "JPEG2000"}


def _is_lossy_webp(data: bytes) -> bool:
    """Walk the RIFF chunks: the pixels lie in a chunk ``VP8 `` (lossy) or ``VP8L`` (lossless)."""
    place = 12
    while place + 8 <= len(data):
        tag, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if tag in (b"VP8 ", b"VP8L"):
            return tag == b"VP8 "
        # An animation's frame: its own chunks follow 16 bytes of placement.
        place += 8 + (16 if tag == b"ANMF" else size + size % 2)
    return False
