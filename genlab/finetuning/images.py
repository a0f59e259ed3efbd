"""Bring training images to the shape of a base: refused, or converted as the settings say."""

from dataclasses import dataclass, replace
from typing import Any

from genlab.choices import Fit
from genlab.data.sources.latents import is_latents
from genlab.data.sources.opening import open_source
from genlab.errors import ConfigError
from genlab.finetuning.objective import describe_shape, state_shape
from genlab.generators.base import Generator
from genlab.training.config import DataConfig

COLOURS = {1: 1, 2: 1, 3: 3, 4: 3}
"""Channels of an image -> those without transparency."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The conversion of a run's images, for its record.

    Attributes:
        first_image: (C, H, W) of the first one, as it lies in the data.
        image_shape: (C, H, W) of all of them in training.
        fit: how the size is changed.
    """

    first_image: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    fit: str

    @property
    def changes(self) -> bool:
        """Whether anything is."""
        return self.first_image != self.image_shape

    def describe(self) -> str:
        """In words, as a command prints it.

        >>> Conversion(first_image=(3, 48, 64), image_shape=(1, 32, 32), fit="crop").describe()
        '64x48 RGB (the first one) to 32x32 grey by data.fit=crop and data.channels=1'
        """
        ways = []
        if self.first_image[1:] != self.image_shape[1:]:
            ways.append(f"data.fit={self.fit}")
        if self.first_image[0] != self.image_shape[0]:
            ways.append(f"data.channels={self.image_shape[0]}")
        by = f" by {' and '.join(ways)}" if ways else ""
        first = describe_shape(self.first_image)
        return f"{first} (the first one) to {describe_shape(self.image_shape)}{by}"

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        first, shape = list(self.first_image), list(self.image_shape)
        return {"first_image": first, "image_shape": shape, "fit": self.fit}


def conform_to(config: DataConfig, base: Generator, name: str) -> tuple[DataConfig, Conversion]:
    """The settings by which images become the base's kind.

    The size follows from the base as soon as ``fit`` says how to get there; channels are converted
    only where ``channels`` says so.

    Args:
        config: of the data.
        base: what the images are for.
        name: what messages call it.

    Returns:
        The settings with the size filled in, and what they do.

    Raises:
        ConfigError: the images are of another kind, and the settings do not say how to convert
            them.
        DataError: the images cannot be read.
    """
    shape = state_shape(base)
    if is_latents(config.path) or getattr(base, "autoencoder", None) is not None:
        return config, Conversion(first_image=shape, image_shape=shape, fit="none")
    channels, size, _ = shape
    pixels = open_source(config.path, config.split).read(0)
    first = (COLOURS[pixels.shape[0]], int(pixels.shape[1]), int(pixels.shape[2]))
    if config.image_size not in (None, size):
        raise ConfigError(
            f"data.image_size is {config.image_size}, and {name} draws {size}x{size}; leave it "
            "out, or bring the model to another size with --resolution (resolution), where it can"
        )
    if config.channels not in (None, channels):
        raise ConfigError(
            f"data.channels is {config.channels}, and {name} draws images of {channels}; set it to "
            f"{channels}"
        )
    cures = []
    if first[1:] != (size, size) and config.fit is Fit.none:
        cures.append("data.fit=crop (or pad, resize)")
    if first[0] != channels and config.channels is None:
        cures.append(f"data.channels={channels}")
    if cures:
        raise ConfigError(
            f"the first image of {config.path} is {describe_shape(first)}, and {name} draws "
            f"{describe_shape(shape)}; to convert the images add {' and '.join(cures)}"
        )
    settings = replace(config, image_size=size)
    return settings, Conversion(first_image=first, image_shape=shape, fit=config.fit.value)
