"""Images with 16 bits a channel, grey or colour: all are rounded to 8 bits by one rule.

Pillow reads 16-bit grey whole but drops the lower byte of 16-bit colour. Which byte it keeps is
said by the raw mode of its decoder (``RGB;16B`` or ``RGB;16L``): decoded once with each, the file
gives both.
"""

import io
import re
import sys
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from genlab.errors import DataError

_GREY = {"I;16", "I;16B", "I;16L", "I;16N"}
_COLOUR = re.compile(r"(RGBA?);16([BLN])")
_GREY_ALPHA = "LA;16B"
_WIDE = re.compile(r".*;(16[A-Z]|12.*)")
"""Raw modes of 12 or 16 bits a channel; ``BGR;16`` has 16 bits for all three."""
_OWN = "B" if sys.byteorder == "big" else "L"

CURE = "convert it to 8 bits"


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image, not yet loaded, stores more than 8 bits a channel."""
    return image.mode in {"I", "F", *_GREY} or any(map(_WIDE.fullmatch, _raw_modes(image)))


def deep_mode(image: Image.Image) -> str:
    """How the file stores the channels, in Pillow's words: ``I;16``, ``RGB;16``, ``LA;16``."""
    if image.mode in {"I", "F", *_GREY}:
        return image.mode
    return next(mode[:-1] for mode in _raw_modes(image) if _WIDE.fullmatch(mode))


def read_deep(image: Image.Image, data: bytes, name: str) -> Image.Image:
    """An image that `is_deep`, rounded to 8 bits a channel.

    Args:
        image: opened and not yet loaded.
        data: the whole file.
        name: what messages call it.

    Returns:
        Mode L, LA, RGB or RGBA, as the file has it turned.

    Raises:
        DataError: channels of 32 bits, or a layout that cannot be read without loss.
    """
    raw = _raw_modes(image)
    # Netpbm's grey of more than 8 bits comes as 32-bit integers, scaled to 0 ... 65535.
    netpbm = image.mode == "I" and image.format in ("PPM", "PNG")
    if netpbm or (image.mode in _GREY and raw <= _GREY):
        values = np.asarray(image).astype(np.uint16)[..., None]
    elif raw == {_GREY_ALPHA}:
        parts = _decode(data, lambda mode: "RGBA")  # the bytes of grey and alpha, big-endian
        values = np.stack(
            [_join(parts[..., 0], parts[..., 1]), _join(parts[..., 2], parts[..., 3])], -1
        )
    elif raw and all(_COLOUR.fullmatch(mode) for mode in raw):
        values = _join(
            _decode(data, _with_byte(upper=True)), _decode(data, _with_byte(upper=False))
        )
    else:
        raise DataError(
            f"{name} has more than 8 bits a channel (mode {deep_mode(image)}), which cannot be "
            f"read without loss; {CURE}"
        )
    values = _with_alpha(values, image.info.get("transparency"))
    return Image.fromarray(to_8_bits(values)[..., 0] if values.shape[2] == 1 else to_8_bits(values))


def to_8_bits(values: UInt16[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s"]:
    """The nearest of 256 levels: ``round(value / 257)``, so that 0xffff becomes 0xff.

    >>> to_8_bits(np.array([0x0000, 0x00FF, 0x01FF, 0xFFFF], np.uint16)).tolist()
    [0, 1, 2, 255]
    """
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _raw_modes(image: Image.Image) -> set[str]:
    """The byte order that the decoder gets for every tile."""
    return {_raw_mode(tile.args) for tile in getattr(image, "tile", ())}


def _raw_mode(args: Any) -> str:
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _decode(data: bytes, change: Any) -> UInt8[np.ndarray, "H W C"]:
    """The image as decoded with other raw modes."""
    with Image.open(io.BytesIO(data)) as image:
        tiles = []
        for tile in image.tile:
            raw = change(_raw_mode(tile.args))
            args = (raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw
            tiles.append(tile._replace(args=args))
        image.tile = tiles
        return np.asarray(image)


def _with_byte(*, upper: bool) -> Any:
    """Changes a raw mode so that one byte of each channel is kept."""

    def change(mode: str) -> str:
        match = _COLOUR.fullmatch(mode)
        assert match is not None
        order = _OWN if match[2] == "N" else match[2]
        return f"{match[1]};16{order if upper else {'B': 'L', 'L': 'B'}[order]}"

    return change


def _join(
    upper: UInt8[np.ndarray, "*s"], lower: UInt8[np.ndarray, "*s"]
) -> UInt16[np.ndarray, "*s"]:
    return upper.astype(np.uint16) << 8 | lower


def _with_alpha(values: UInt16[np.ndarray, "H W C"], key: Any) -> UInt16[np.ndarray, "H W C2"]:
    """With an alpha channel, where one colour stands for transparent (PNG's chunk tRNS)."""
    if key is None or values.shape[2] not in (1, 3):
        return values
    alpha = np.where((values == np.array(key)).all(-1, keepdims=True), 0, 0xFFFF)
    return np.concatenate([values, alpha.astype(np.uint16)], axis=-1)
