"""Bring images to one size and one number of channels: alpha, then channels, then size."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from genlab.choices import ALPHAS, FITS, check_least
from genlab.errors import ConfigError, DataError, nearest

LUMA = (19595, 38470, 7471)
"""ITU-R BT.601 luma times 2**16; the sum is 65536, so that grey stored as RGB stays what it was."""


@dataclass(frozen=True)
class Wording:
    """How a user writes the settings of `Conform` where a message is read.

    Attributes:
        prefix: of a setting's name: ``data.`` in training, ``--`` for options of a command.
        has_alpha: whether there is a setting for transparency.
        has_fit: whether there are settings for the size.
        no_labels: the setting that leaves the classes of the images out; "" where there is none.
    """

    prefix: str = ""
    has_alpha: bool = True
    has_fit: bool = True
    no_labels: str = ""

    def setting(self, name: str, value: str) -> str:
        """A setting as it is written.

        >>> Wording("data.").setting("alpha", "white"), Wording("--").setting("alpha", "white")
        ('data.alpha=white', '--alpha white')
        """
        return f"--{name} {value}" if self.prefix == "--" else f"{self.prefix}{name}={value}"


KEYWORDS = Wording(no_labels="labels=false")
TRAINING = Wording("data.", no_labels="data.labels=false")
OPTIONS = Wording("--")


@dataclass(frozen=True, kw_only=True)
class Conform:
    """How images are made alike.

    Attributes:
        image_size: height and width wanted; None keeps the size.
        channels: 1 (grey) or 3 (RGB); None keeps them.
        fit: what to do with another size. ``none`` refuses it. ``pad`` centres the image on black
            and never enlarges; a larger one is shrunk until it fits, its shape kept. ``resize``
            stretches to the size (Lanczos). ``crop`` scales the shorter side to the size and keeps
            the centre (halving by box, then bicubic: the way of the ImageNet reference statistics).
        alpha: what to do with transparency: ``refuse`` it, or lay the image on ``black`` or
            ``white``. An alpha channel that is opaque everywhere is dropped in any case.
        wording: how messages name these settings.
    """

    image_size: int | None = None
    channels: int | None = None
    fit: str = "none"
    alpha: str = "refuse"
    wording: Wording = KEYWORDS

    def __post_init__(self) -> None:
        check_least(self, image_size=1)
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels}")
        if self.fit not in FITS:
            raise ConfigError(f"there is no fit {self.fit!r}; {nearest(self.fit, FITS)}")
        if self.alpha not in ALPHAS:
            raise ConfigError(f"there is no alpha {self.alpha!r}; {nearest(self.alpha, ALPHAS)}")
        if self.fit != "none" and self.image_size is None:
            raise ConfigError(f"fit {self.fit!r} has no effect without image_size; set image_size")

    def __call__(
        self, pixels: UInt8[np.ndarray, "C H W"], name: str = "image"
    ) -> UInt8[np.ndarray, "C2 H2 W2"]:
        """Bring one image into shape.

        Args:
            pixels: (C, H, W) with C from 1 to 4, see `ImageSource.read`.
            name: what messages call it.

        Raises:
            DataError: transparency or a size that the settings refuse.
        """
        return self._size(self._channels(self._opaque(pixels, name)), name)

    def _opaque(self, pixels: UInt8[np.ndarray, "C H W"], name: str) -> UInt8[np.ndarray, "C2 H W"]:
        if len(pixels) in (1, 3):
            return pixels
        colour, alpha = pixels[:-1], pixels[-1:].astype(np.uint32)
        if alpha.min(initial=255) == 255:
            return colour
        if self.alpha == "refuse":
            raise DataError(f"{name} is partly transparent; {self._behind()}")
        behind = np.uint32(255 if self.alpha == "white" else 0)
        return ((colour * alpha + behind * (255 - alpha) + 127) // 255).astype(np.uint8)

    def _behind(self) -> str:
        """What to do about transparency."""
        if not self.wording.has_alpha:
            return "lay the images on a colour first: 'genlab data prepare' with --alpha white"
        white, black = (self.wording.setting("alpha", colour) for colour in ("white", "black"))
        return f"say what lies behind it: {white} or {black}"

    def _channels(self, pixels: UInt8[np.ndarray, "C H W"]) -> UInt8[np.ndarray, "C2 H W"]:
        if self.channels is None or len(pixels) == self.channels:
            return pixels
        if self.channels == 3:
            return np.repeat(pixels, 3, axis=0)
        weights = np.array(LUMA, np.uint32)[:, None, None]
        return ((pixels * weights).sum(0, keepdims=True) + 0x8000 >> 16).astype(np.uint8)

    def _size(self, pixels: UInt8[np.ndarray, "C H W"], name: str) -> UInt8[np.ndarray, "C H2 W2"]:
        size = self.image_size
        height, width = pixels.shape[1:]
        if size is None or (height, width) == (size, size):
            return pixels
        if self.fit == "none":
            fit = self.wording.setting("fit", "pad")
            cure = (
                f"choose {fit}, resize or crop"
                if self.wording.has_fit
                else f"bring the images to {size}x{size} first, with 'genlab data prepare'"
            )
            raise DataError(f"{name} is {width}x{height}, not {size}x{size}; {cure}")
        return {"pad": pad, "resize": resize, "crop": crop}[self.fit](pixels, size)


def pad(pixels: UInt8[np.ndarray, "*N C H W"], size: int) -> UInt8[np.ndarray, "*N C S S"]:
    """Centre an image (or a batch that needs no shrinking) on black; shrink a larger one first."""
    height, width = pixels.shape[-2:]
    if max(height, width) > size:
        ratio = size / max(height, width)
        height, width = max(1, round(height * ratio)), max(1, round(width * ratio))
        pixels = _resample(pixels, width, height, Image.Resampling.LANCZOS)
    top, left = (size - height) // 2, (size - width) // 2
    edges = [(top, size - height - top), (left, size - width - left)]
    return np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + edges)


def resize(pixels: UInt8[np.ndarray, "C H W"], size: int) -> UInt8[np.ndarray, "C S S"]:
    """Stretch an image to a square."""
    return _resample(pixels, size, size, Image.Resampling.LANCZOS)


def crop(pixels: UInt8[np.ndarray, "C H W"], size: int) -> UInt8[np.ndarray, "C S S"]:
    """Scale the shorter side to ``size`` and keep the centre."""
    height, width = pixels.shape[1:]
    while min(height, width) >= 2 * size:
        height, width = height // 2, width // 2
        pixels = _resample(pixels, width, height, Image.Resampling.BOX)
    ratio = size / min(height, width)
    height, width = round(height * ratio), round(width * ratio)
    pixels = _resample(pixels, width, height, Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]


def _resample(
    pixels: UInt8[np.ndarray, "C H W"], width: int, height: int, filter_: Image.Resampling
) -> UInt8[np.ndarray, "C H2 W2"]:
    planes = [Image.fromarray(plane).resize((width, height), filter_) for plane in pixels]
    return np.stack([np.asarray(plane) for plane in planes])
