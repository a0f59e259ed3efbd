"""Differentiable augmentation: the discriminator sees real and made images only through it.

Since the generator's gradient passes through the same transformations, they do not leak into what
it draws, and a discriminator that cannot learn few images by heart stays useful for longer.

Source: Zhao et al. 2020, arXiv:2006.10738, section 3.2 and Appendix A.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.data.augment.jitter import random_shift
from genlab.errors import ConfigError, nearest

SHIFT = 1 / 8
"""How far images move at most, as a share of their height."""

CUT = 1 / 2
"""Height and width of what is cut out, as a share of the image's."""

GREY = 0.0
"""What comes in at the edges and where something was cut out, images being in [-1, 1]."""

Images = Float[Tensor, "B C H W"]


def color(images: Images, generator: torch.Generator) -> Images:
    """Change brightness by up to 0.5, saturation to 0 ... 2-fold, contrast to 0.5 ... 1.5-fold."""
    brightness, saturation, contrast = (_uniform(images, generator) for _ in range(3))
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: Images, generator: torch.Generator) -> Images:
    """Move by up to an eighth of the height, each way."""
    return random_shift(images, round(images.shape[2] * SHIFT), generator, fill=GREY)


def cutout(images: Images, generator: torch.Generator) -> Images:
    """Cut out a square of half the height, whose centre lies anywhere in the image."""
    _, _, height, width = images.shape
    size = round(height * CUT)
    rows = _inside(images, height, size, generator)[:, :, None]
    columns = _inside(images, width, size, generator)[:, None, :]
    return images.masked_fill((rows & columns)[:, None], GREY)


def _inside(images: Images, length: int, size: int, generator: torch.Generator) -> Tensor:
    """Which places (B, length) along an axis lie within a random stretch of ``size``."""
    # A stretch of even length has its centre between two places: one more start for it.
    starts = torch.randint(
        length + (size % 2 == 0),
        (len(images), 1),
        generator=generator,
        device=generator.device,
    ).to(images.device)
    offset = torch.arange(length, device=images.device) - (starts - size // 2)
    return (offset >= 0) & (offset < size)


def _uniform(images: Images, generator: torch.Generator) -> Float[Tensor, "B 1 1 1"]:
    draws = torch.rand(len(images), 1, 1, 1, generator=generator, device=generator.device)
    return draws.to(images)


TRANSFORMATIONS: dict[str, Callable[[Images, torch.Generator], Images]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


class DiffAugment:
    """Transformations one after another, each image by its own draws.

    Args:
        names: of them, in order; none leaves images as they are.

    Raises:
        ConfigError: there is no such transformation.
    """

    def __init__(self, names: Sequence[str] = tuple(TRANSFORMATIONS)) -> None:
        for name in names:
            if name not in TRANSFORMATIONS:
                raise ConfigError(
                    f"differentiable augmentation has no transformation {name!r}; "
                    f"{nearest(name, TRANSFORMATIONS)}"
                )
        self.names = tuple(names)

    def __call__(self, images: Images, generator: torch.Generator) -> Images:
        """Transform images in [-1, 1]; what comes out may go beyond."""
        for name in self.names:
            images = TRANSFORMATIONS[name](images, generator)
        return images
