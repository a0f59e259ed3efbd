"""The kinds of samples: images, and latents that an autoencoder can decode.

The two kinds never share a name or a layout, so that latents are never read as pixels: images are
8-bit PNGs and ``arr_0``, latents are float32 arrays under their own names.
"""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from genlab.data.pixels import PIXEL_RULE, to_uint8
from genlab.data.writing import writers
from genlab.data.writing.formats import ARCHIVES
from genlab.data.writing.writers import Pixels

Stored = np.ndarray[Any, np.dtype[Any]]
"""One sample as it is stored: uint8 (H, W, C) of an image, float32 (C, H, W) of a latent."""

SPAN = 3.0
"""Latents are shown from minus this (black) to this (white): about unit variance is what diffusion
models are trained on, and three standard deviations hold nearly all numbers."""


class SampleKind(ABC):
    """One kind of sample: how it is stored, and how it is shown.

    Attributes:
        name: of the folder and the archives that hold the samples.
        noun: of one sample, in messages; ``each`` is the same with an article.
        prefix: of the names of files that hold one sample.
        ending: of these names; the format that keeps them in a folder is called so, too.
    """

    name: ClassVar[str]
    noun: ClassVar[str]
    each: ClassVar[str]
    prefix: ClassVar[str]
    ending: ClassVar[str]

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that can hold such samples, the usual one first."""
        return (self.ending, *ARCHIVES)

    def file_name(self, seed: int) -> str:
        """Where the sample of a seed lies in a folder or zip."""
        return writers.sample_name(seed, self.prefix, self.ending)

    def pattern(self) -> str:
        """What matches all such names, for `Path.glob`."""
        return f"*/{self.prefix}*.{self.ending}"

    @abstractmethod
    def stored(self, samples: Float[Tensor, "B C H W"]) -> list[Stored]:
        """Samples as a generator gives them, each as it is stored."""

    @abstractmethod
    def shown(self, samples: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B D H2 W2"]:
        """Samples as a generator gives them, as pictures: grey (D = 1) or RGB."""

    @abstractmethod
    def picture(self, sample: Stored) -> Pixels:
        """A stored sample as a picture."""

    @abstractmethod
    def encode(self, sample: Stored) -> bytes:
        """What a sample's file holds."""

    @abstractmethod
    def decode(self, data: bytes) -> Stored:
        """Undo `encode`."""

    @abstractmethod
    def write_npz(
        self,
        path: Path,
        samples: Iterator[Stored],
        shape: tuple[int, int, int],
        seeds: Sequence[int],
        labels: Sequence[int] | None,
    ) -> None:
        """Write all samples into one npz, sample by sample, so that memory stays small.

        Args:
            path: the npz.
            samples: one for each seed.
            shape: (C, H, W) of each.
            seeds: of the samples.
            labels: one class for each; None where there are none.
        """

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """The encoding of the numbers in the files, for a manifest."""

    def title(self, text: str) -> str:
        """What stands above a picture of samples."""
        return text

    def marks(self) -> Mapping[str, str]:
        """What the metadata of such a picture say."""
        return {}

    def read_first(self, path: Path, count: int) -> Iterator[Stored]:
        """The first samples of a zip, or of an npz that `write_npz` made."""
        return writers.read_first(path, count, self.decode, self._array)

    @property
    @abstractmethod
    def _array(self) -> str:
        """The array of an npz that holds the samples."""


class _Images(SampleKind):
    """Images: PNGs, in EDM's layout where they are a zip and in ADM's where they are an npz."""

    name, noun, each, prefix, ending = "images", "image", "an image", "img", "png"
    _array = "arr_0"

    @override
    def stored(self, samples: Float[Tensor, "B C H W"]) -> list[Stored]:
        return list(to_uint8(samples).permute(0, 2, 3, 1).cpu().numpy())

    @override
    def shown(self, samples: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
        return to_uint8(samples)

    @override
    def picture(self, sample: Stored) -> Pixels:
        return sample

    @override
    def encode(self, sample: Stored) -> bytes:
        return writers.encode_png(sample)

    @override
    def decode(self, data: bytes) -> Stored:
        return writers.decode_png(data)

    @override
    def write_npz(
        self,
        path: Path,
        samples: Iterator[Stored],
        shape: tuple[int, int, int],
        seeds: Sequence[int],
        labels: Sequence[int] | None,
    ) -> None:
        """The layout is that of `writers.write_npz`."""
        channels, height, width = shape
        writers.write_npz(path, samples, (len(seeds), height, width, channels), labels)

    @override
    def metadata(self) -> dict[str, Any]:
        return {"pixel_rule": PIXEL_RULE}


class _Latents(SampleKind):
    """Latents, exactly as the network gives them: ``vae.decode(latents / scaling_factor)``.

    A file of one is .npy, float32 (C, H, W). The npz has ``latents``, float32 (N, C, H, W),
    ``seeds``, int64 (N,), and where there are classes ``labels``, int64 (N,): no ``arr_0``, which
    readers of images would take for pixels.
    """

    name, noun, each, prefix, ending = "latents", "latent", "a latent", "latent", "npy"
    _array = "latents"

    @override
    def stored(self, samples: Float[Tensor, "B C H W"]) -> list[Stored]:
        return list(samples.float().cpu().numpy().astype("<f4"))

    def shown(self, samples: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B 1 H2 W2"]:
        """The channels side by side in grey, row by row in a square, from -`SPAN` to `SPAN`."""
        count, channels, height, width = samples.shape
        columns = math.isqrt(channels - 1) + 1
        rows = -(-channels // columns)
        filled = F.pad(samples, (0, 0, 0, 0, 0, rows * columns - channels))
        tiles = filled.reshape(count, rows, columns, height, width).transpose(2, 3)
        return to_uint8(tiles.reshape(count, 1, rows * height, columns * width) / SPAN)

    @override
    def picture(self, sample: Stored) -> Pixels:
        return self.shown(torch.tensor(sample)[None])[0].permute(1, 2, 0).numpy()

    @override
    def encode(self, sample: Stored) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(sample), allow_pickle=False)
        return buffer.getvalue()

    @override
    def decode(self, data: bytes) -> Stored:
        stored: Stored = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return stored

    @override
    def write_npz(
        self,
        path: Path,
        samples: Iterator[Stored],
        shape: tuple[int, int, int],
        seeds: Sequence[int],
        labels: Sequence[int] | None,
    ) -> None:
        """And the class for the layout."""
        beside = {"seeds": seeds} if labels is None else {"labels": labels, "seeds": seeds}
        rows = writers.Rows(self._array, "<f4", (len(seeds), *shape), samples)
        writers.write_arrays(path, rows, beside)

    @override
    def metadata(self) -> dict[str, Any]:
        return {"numbers": "float32, as the network gives them", "picture_rule": self._rule}

    _rule = f"channels row by row, grey from -{SPAN:g} (black) to {SPAN:g} (white)"

    @override
    def title(self, text: str) -> str:
        return f"latents, not images: {text}"

    @override
    def marks(self) -> Mapping[str, str]:
        return {"Description": f"latents of a diffusion model, not images: {self._rule}"}


IMAGES: SampleKind = _Images()
LATENTS: SampleKind = _Latents()
KINDS = (IMAGES, LATENTS)


def kind_named(name: Any) -> SampleKind:
    """The kind that a record names; one that names none is of images, as all old ones.

    Raises:
        ValueError: there is none of this name.
    """
    if name is None:
        return IMAGES
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise ValueError(f"samples of an unknown kind: {name!r}")
