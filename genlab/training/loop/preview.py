"""A grid of samples drawn while a model trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from genlab.data.pixels import to_uint8
from genlab.data.writing.pictures import grid, write_grid
from genlab.generators.base import Generator
from genlab.samplers.base import SamplerLike


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Samples of a model in training.

    Attributes:
        pixels: (N, C, H, W), of the seeds 0, 1, 2, ...
        labels: a class for each, or None.
        picture: the grid.
        path: where it lies.
    """

    pixels: UInt8[Tensor, "N C H W"]
    labels: Sequence[int] | None
    picture: Image.Image
    path: Path


def draw_preview(
    generator: Generator, count: int, sampler: SamplerLike, path: Path, title: str
) -> Preview:
    """Draw samples with the seeds 0, 1, 2, ..., classes taking turns, and write them as a grid.

    Seeds and classes are the same each time, so that the pictures of a run can be compared.
    """
    built = generator.build_sampler(sampler)
    classes = generator.sampled_classes(built)
    labels = [seed % classes for seed in range(count)] if classes else None
    images = generator.sample(range(count), labels, built, batch_size=64)
    pixels = to_uint8(images.cpu())
    tiles = list(pixels.permute(0, 2, 3, 1).numpy())
    picture = grid(tiles, labels, generator.class_names, title)
    write_grid(path, picture)
    return Preview(pixels=pixels, labels=labels, picture=picture, path=path)
