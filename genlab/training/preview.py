"""A grid of samples drawn while a model trains."""

from pathlib import Path

from PIL import Image

from genlab.data.pictures import grid, write_grid
from genlab.data.pixels import to_uint8
from genlab.generators.base import Generator
from genlab.samplers.base import SamplerLike


def draw_preview(
    generator: Generator, count: int, sampler: SamplerLike, path: Path, title: str
) -> Image.Image:
    """Draw samples with the seeds 0, 1, 2, ..., classes taking turns, and write them as a grid.

    Seeds and classes are the same each time, so that the pictures of a run can be compared.
    """
    built = generator.build_sampler(sampler)
    classes = generator.sampled_classes(built)
    labels = [seed % classes for seed in range(count)] if classes else None
    images = generator.sample(range(count), labels, built, batch_size=64)
    pixels = to_uint8(images.cpu()).permute(0, 2, 3, 1).numpy()
    picture = grid(list(pixels), labels, generator.class_names, title)
    write_grid(path, picture)
    return picture
