"""Images with 16 bits a channel: one rule for grey and colour, in every file format."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.data.check.checks import check
from genlab.data.sources.decode import decode
from genlab.errors import DataError

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> PNG's number for them."""


def deep_png(values: np.ndarray, key: bytes = b"", orientation: int = 1) -> bytes:
    """A 16-bit PNG of values (H, W, C), which Pillow cannot write in colour."""
    height, width, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"eXIf", exif.tobytes()[6:]) if orientation != 1 else b"",
            chunk(b"tRNS", key) if key else b"",
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def deep_tiff(values: np.ndarray, bits: int = 16) -> bytes:
    """An uncompressed little-endian TIFF of values (H, W, C)."""
    height, width, channels = values.shape
    pixels = values.astype("<u2").tobytes()
    photometric = 2 if channels >= 3 else 1
    depth = struct.pack("<4H", *[bits] * 4)
    start = 8 + len(pixels)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits), (259, 3, 1, 1),
        (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    if channels == 4:
        tags.append((338, 3, 1, 2))  # the last channel is alpha
    table = 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, kind, count, start + table if count > 2 else value)
        for tag, kind, count, value in tags
    )
    body = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + depth
    return b"II*\0" + struct.pack("<I", start) + pixels + body


def random_values(channels: int, height: int = 5, width: int = 7) -> np.ndarray:
    shape = (height, width, channels)
    return np.random.default_rng(channels).integers(0, 65536, shape).astype(np.uint16)


def rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 257).astype(np.uint8).transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_rounded_in_grey_and_colour_alike(channels: int) -> None:
    values = random_values(channels)
    picture = decode(deep_png(values), "a.png")
    assert picture.deep
    assert np.array_equal(picture.pixels, rounded(values))


def test_small_values_are_not_cut_to_black() -> None:
    values = np.array([0x0000, 0x00FF, 0x01FF, 0xFFFF], np.uint16)[:, None, None]
    for channels in (1, 3):
        pixels = decode(deep_png(values.repeat(channels, 2)), "a.png").pixels
        assert pixels[-1, :, 0].tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_of_16_bits_is_rounded_too(channels: int) -> None:
    values = random_values(channels)
    assert np.array_equal(decode(deep_tiff(values), "a.tif").pixels, rounded(values))


def test_netpbm_of_16_bits_is_rounded_too() -> None:
    values = random_values(1)
    data = b"P5 7 5 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(decode(data, "a.pgm").pixels, rounded(values))
    colour = random_values(3)
    data = b"P6 7 5 65535\n" + colour.astype(">u2").tobytes()
    assert np.array_equal(decode(data, "a.ppm").pixels, rounded(colour))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_that_stands_for_clear_becomes_alpha(channels: int) -> None:
    values = random_values(channels)
    picture = decode(deep_png(values, key=values[2, 3].astype(">u2").tobytes()), "a.png")
    alpha = np.full((5, 7), 255)
    alpha[2, 3] = 0
    assert np.array_equal(picture.pixels, np.concatenate([rounded(values), alpha[None]]))


def test_a_deep_image_is_turned_upright() -> None:
    values = random_values(3)
    picture = decode(deep_png(values, orientation=6), "a.png")
    assert picture.turned
    assert np.array_equal(picture.pixels, np.rot90(rounded(values), -1, axes=(1, 2)))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_channels_of_32_bits_are_refused_with_the_cure(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, format="tiff")
    with pytest.raises(DataError, match=rf"a\.tif has more than 8 bits .*{mode}.*convert it"):
        decode(buffer.getvalue(), "a.tif")


def test_12_bits_in_16_are_no_16_bits() -> None:
    with pytest.raises(DataError, match="more than 8 bits"):
        decode(deep_tiff(random_values(1) // 16, bits=12), "a.tif")


def test_check_says_what_becomes_of_16_bits(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(deep_png(random_values(2) + number))
    report = check(tmp_path)
    assert report.modes == {"LA;16": 2}
    [finding] = [f for f in report.findings if f.code == "deep"]
    assert "0.png" in finding.message
    assert "rounded to 8" in finding.message
    assert not any(f.code == "mixed-channels" for f in report.findings)
