"""Frequency-decoupled guidance (FDG): a weight of its own for each band of frequencies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from genlab.diffusion.denoiser import Denoiser
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import Guidance
from genlab.samplers.guidance.extrapolation import ByClass, ByClassOptions


@dataclass(frozen=True, kw_only=True)
class FrequencyDecoupled(ByClassOptions):
    """``cfg`` whose scale is another for fine detail than for what is coarse.

    Choose it in place of ``cfg`` for sharp detail at a high scale without the loss of variety and
    the colours that a high scale brings, since these come from the low frequencies.

    Doubles the cost, as ``cfg`` does; the pyramid itself is a few small convolutions. A scale of 1
    is off and costs nothing.

    Attributes:
        scale: >= 0; 1 is off.
        bands: share of the guidance in each band, from the highest frequencies to the lowest: band
            k has the weight ``1 + (scale - 1) bands[k]``. Each band halves the size of the image;
            there must be at least two.
        weight: how the scale runs over time: ``constant``, ``cads`` or ``power-cosine``, see `cfg`.
        space: where bands are taken: ``x0``, ``eps``, ``v``, ``flow-v`` or ``model``. The weights
            differ between bands, yet within each the formula is affine: all spaces give the same.
        rescale: see `cfg`.
        threshold: see `cfg`.
        threshold_max: see `cfg`.

    Source: Sadat et al. (arXiv:2506.19713), with the Laplacian pyramid that diffusers takes.
    """

    title: ClassVar[str] = "frequency-decoupled guidance"
    suits: ClassVar[str] = "with a null class"
    example: ClassVar[Mapping[str, Any]] = {"scale": 4, "bands": [1, 0.2]}

    space: str = "x0"
    bands: tuple[float, ...] = (1.0, 0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.bands) < 2:
            raise ConfigError(
                f"{self.title} needs two bands or more, got {list(self.bands)}; take cfg for one"
            )
        if not all(math.isfinite(share) for share in self.bands):
            raise ConfigError(f"{self.title} needs finite bands, got {list(self.bands)}")

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: the model has no classes or no null class, or is guided away from the null
                class already.
        """
        self.check(denoiser)
        return FrequencyDecoupledDenoiser(denoiser, self)


class FrequencyDecoupledDenoiser(ByClass):
    """A denoiser under frequency-decoupled guidance; see `FrequencyDecoupled`."""

    options: FrequencyDecoupled

    @override
    def extrapolate(self, slot: int, c: Tensor, n: Tensor) -> Tensor:
        """The pyramid is linear and is rebuilt exactly, so that the one of ``c - n`` is enough.

        Raises:
            ConfigError: the images are too small for so many bands.
        """
        return c + (self.w - 1) * weigh_bands(c - n, self.options.bands)


def weigh_bands(images: Tensor, shares: Sequence[float]) -> Tensor:
    """Multiply each band of a Laplacian pyramid, and put it together again.

    Args:
        images: (B, C, H, W).
        shares: the factor of each band, from the highest frequencies to the lowest.

    Raises:
        ConfigError: the images are too small for so many bands.
    """
    levels = [images]
    for _ in shares[1:]:
        height, width = levels[-1].shape[2:]
        if min(height, width) < 4:
            raise ConfigError(
                f"images of {images.shape[2]}x{images.shape[3]} have no {len(shares)} bands of"
                " frequencies; give frequency-decoupled guidance fewer bands"
            )
        levels.append(_resize(_blur(levels[-1]), (height // 2, width // 2)))
    # Band k is level k without what level k + 1 tells of it.
    whole = levels[-1] * shares[-1]
    for level, smaller, share in zip(
        levels[-2::-1], levels[:0:-1], reversed(shares[:-1]), strict=True
    ):
        rest = torch.add(whole, smaller, alpha=-share)
        whole = torch.add(_blur(_resize(rest, level.shape[2:])), level, alpha=share)
    return whole


def _blur(images: Tensor) -> Tensor:
    """Binomial weights 1 4 6 4 1 in both directions: four means of two neighbours."""
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    for _ in range(4):
        padded = F.avg_pool2d(padded, 2, stride=1)
    return padded


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False)
