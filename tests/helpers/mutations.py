"""Small damage to files, drawn from a seed: what transfers, disks and forgers do to them."""

import random
import re
import zlib
from collections.abc import Callable

HUGE = (b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f", b"\x00" * 8, b"\x80" * 8)
NUMBERS = ("-1", "0", "1e999", "NaN", "1e-9", "99999999999999999999", "9" * 5000, "1000000000")
TEXTS = ("\x1b[31m", "\u202e", "\x00", "../", "[" * 300, "{" * 300, "${oc.env:HOME}", "\ud83d")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three pieces of damage."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_DAMAGES)(data, rng)
    return data


def damaged_text(text: str, rng: random.Random) -> str:
    """Text with numbers, names or brackets changed, and at times with damaged bytes."""
    if rng.random() < 0.2:
        return damaged(text.encode(), rng).decode(errors="surrogateescape")
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(_TEXT_DAMAGES)(text, rng)
    return text


def with_checksums(data: bytes) -> bytes:
    """A damaged PNG with the checksums that its chunks should have: decoders look at the damage."""
    start = 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if end + 4 > len(data):
            break
        checksum = zlib.crc32(data[start + 4 : end]).to_bytes(4)
        data = data[:end] + checksum + data[end + 4 :]
        start = end + 4
    return data


def _place(data: bytes, rng: random.Random) -> int:
    """Half of the damage falls on the head, where formats keep what they claim."""
    whole = max(len(data), 1)
    return rng.randrange(min(whole, 2000) if rng.random() < 0.5 else whole)


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _drop(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    return data[:start] + data[start + rng.randint(1, 40) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    return (
        data[:start] + data[start : start + rng.randint(1, 40)] * rng.randint(2, 20) + data[start:]
    )


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start, number = _place(data, rng), rng.choice(HUGE)[: rng.choice((1, 2, 4, 8))]
    return data[:start] + number + data[start + len(number) :]


def _number(text: str, rng: random.Random) -> str:
    return _instead(text, r"-?\d+(?:\.\d+)?", rng.choice(NUMBERS), rng)


def _name(text: str, rng: random.Random) -> str:
    return _instead(text, r"[A-Za-z_]{2,}", rng.choice((*TEXTS, "true", "null", "x" * 5000)), rng)


def _bracket(text: str, rng: random.Random) -> str:
    return _instead(text, r"[\[\]{}:,\"]", rng.choice(("[", "]", "{", "}", ":", ",", '"', "")), rng)


def _insert(text: str, rng: random.Random) -> str:
    start = rng.randrange(len(text) + 1)
    return text[:start] + rng.choice((*TEXTS, *NUMBERS)) + text[start:]


def _instead(text: str, pattern: str, new: str, rng: random.Random) -> str:
    found = list(re.finditer(pattern, text))
    if not found:
        return text + new
    match = rng.choice(found)
    return text[: match.start()] + new + text[match.end() :]


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _flip, _cut, _drop, _repeat, _overwrite, _overwrite),
)
_TEXT_DAMAGES: tuple[Callable[[str, random.Random], str], ...] = (_number, _number, _name, _bracket,
    _insert)  # fmt: skip
