"""Statistics of the images of a source, in one pass over all of them."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from jaxtyping import UInt8

from genlab.data.sources.base import ImageSource
from genlab.data.sources.decode import Picture
from genlab.data.sources.members import MemberSource
from genlab.errors import DataError

SAMPLE = 512
"""How many images are kept for the search for JPEG's traces."""

SAMPLE_SIDE = 64
"""The part of each that is kept, in pixels."""

BLOCK = 256

TRAITS = ("lossy", "animated", "turned", "transparent", "coloured", "opaque", "blank", "deep")
"""The yes-or-no entries of `Metadata`."""


@dataclass(frozen=True)
class Metadata:
    """What is to be known about one image."""

    size: tuple[int, int]
    mode: str
    format: str
    lossy: bool
    animated: bool
    turned: bool
    transparent: bool
    opaque: bool
    coloured: bool
    blank: bool
    deep: bool
    digest: bytes
    corner: UInt8[np.ndarray, "C H W"]


@dataclass
class Tally:
    """What the images of a source are like; every count is of images.

    Attributes:
        sizes: (width, height) -> count.
        modes: Pillow's mode -> count.
        formats: file format -> count; empty for arrays.
        traits: one of `TRAITS` -> count.
        examples: a trait, size or mode -> the first image that has it.
        broken: name -> why it cannot be read.
        groups: groups of images with equal pixels, by number.
        sample: parts of some images that are stored without loss, for the search for JPEG's traces.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    examples: dict[object, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=list)
    sample: list[UInt8[np.ndarray, "_ _ _"]] = field(default_factory=list)

    def _add(self, name: str, metadata: Metadata) -> None:
        self.sizes[metadata.size] += 1
        self.modes[metadata.mode] += 1
        if metadata.format:
            self.formats[metadata.format] += 1
        traits = [trait for trait in TRAITS if getattr(metadata, trait)]
        self.traits.update(traits)
        for key in (metadata.size, metadata.mode, *traits):
            self.examples.setdefault(key, name)


def take(source: ImageSource, threads: int, progress: Callable[[int], None] | None = None) -> Tally:
    """Read every image once.

    Args:
        source: where they lie.
        threads: how many are decoded at once.
        progress: called with the number of images read since the last call.
    """
    tally = Tally()
    seen: dict[bytes, list[int]] = {}
    every = max(1, len(source) // SAMPLE)

    def look(index: int) -> Metadata | DataError:
        try:
            return _metadata(source, index)
        except DataError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), BLOCK):  # in blocks, so that Ctrl-C is heard soon
            block = range(start, min(start + BLOCK, len(source)))
            for index, metadata in zip(block, pool.map(look, block), strict=True):
                if isinstance(metadata, DataError):
                    tally.broken[source.name(index)] = str(metadata)
                    continue
                tally._add(source.name(index), metadata)
                seen.setdefault(metadata.digest, []).append(index)
                if index % every == 0 and not metadata.lossy:
                    tally.sample.append(metadata.corner)
            if progress is not None:
                progress(len(block))
    tally.groups = [group for group in seen.values() if len(group) > 1]
    return tally


def _metadata(source: ImageSource, index: int) -> Metadata:
    if isinstance(source, MemberSource):
        picture = source.picture(index)
    else:
        pixels = source.read(index)
        mode = {1: "L", 3: "RGB"}[len(pixels)]
        picture = Picture(pixels, mode, "", lossy=False, animated=False, turned=False)
    pixels = picture.pixels
    colour = pixels[: 3 if len(pixels) >= 3 else 1]
    height, width = pixels.shape[1:]
    shape = f"{pixels.shape}".encode()
    return Metadata(
        size=(width, height),
        mode=picture.mode,
        format=picture.format,
        lossy=picture.lossy,
        animated=picture.animated,
        turned=picture.turned,
        transparent=len(pixels) in (2, 4) and bool((pixels[-1] < 255).any()),
        opaque=len(pixels) in (2, 4) and bool((pixels[-1] == 255).all()),
        coloured=len(colour) == 3 and bool((colour != colour[:1]).any()),
        deep=picture.deep,
        blank=bool((pixels == pixels[:, :1, :1]).all()),
        digest=blake2b(shape + pixels.tobytes(), digest_size=16).digest(),
        corner=colour[:, :SAMPLE_SIDE, :SAMPLE_SIDE].copy(),
    )
