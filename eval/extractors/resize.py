"""Resizing methods by name; the choice changes a score more than many a model does.

All but one are linear and separable, so that each is two products with small matrices: ``R_h x
R_w^T``. A matrix depends on the two lengths alone and is kept. Parmar et al. 2022, arXiv:2104.11222
compare the resizes.

Letters: B images, C channels, H and W before, h and w after.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional as F

from genlab.errors import UnknownNameError, nearest

Images = UInt8[Tensor, "B C H W"] | Float[Tensor, "B C H W"]
Size = tuple[int, int]

PIL_BITS = 22
"""Fraction bits of Pillow's weights for 8-bit images: 32, less 8 for the pixel and 2 for sums."""

BICUBIC_SUPPORT = 2.0
BICUBIC_A = -0.5
"""Pillow's cubic is Keys' of 1981; PyTorch's and OpenCV's has -0.75."""


@dataclass(frozen=True)
class Resize:
    """One way to resize.

    Attributes:
        words: what it is, for the protocol card.
        run: (images in [0, 255], (h, w)) -> float32 images in [0, 255].
    """

    words: str
    run: Callable[[Images, Size], Float[Tensor, "B C h w"]]


def resize(images: Images, size: Size, name: str) -> Float[Tensor, "B C h w"]:
    """Resize images.

    Args:
        images: in [0, 255]; ``pil-bicubic`` needs uint8.
        size: (h, w).
        name: in `RESIZES`.

    Returns:
        float32 in [0, 255], not rounded (but by ``pil-bicubic``).

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in RESIZES:
        raise UnknownNameError(f"there is no resize {name!r}; {nearest(name, RESIZES)}")
    return RESIZES[name].run(images, size)


def tf1_bilinear(images: Images, size: Size) -> Float[Tensor, "B C h w"]:
    """TensorFlow 1's ``resize_bilinear``: corners not aligned, no half-pixel shift, no antialias.

    It stands inside the Inception graph of 2015-12-05, so FID and IS are made with it. Pixel i
    comes from position i * in/out, which moves the picture by a fraction of a pixel.
    """
    return _separable(images.float(), size, _tf1_weights)


def legacy_bilinear(images: Images, size: Size) -> Float[Tensor, "B C h w"]:
    """pytorch-fid's resize: half-pixel centres, no antialias, on images scaled to [0, 1]."""
    unit = images.float() / 255
    return 255 * F.interpolate(unit, size, mode="bilinear", align_corners=False, antialias=False)


def clean_bicubic(images: Images, size: Size) -> Float[Tensor, "B C h w"]:
    """clean-fid's resize: antialiased bicubic as Pillow does it on floats, clipped to [0, 255].

    Pillow sums in float64 and rounds to float32 after each direction; here the sums are float32:
    1e-6 of the range apart.
    """
    return _separable(images.float(), size, _bicubic_weights).clamp(0, 255)


def pil_bicubic(images: UInt8[Tensor, "B C H W"], size: Size) -> Float[Tensor, "B C h w"]:
    """Pillow's antialiased bicubic on 8-bit images, bit for bit.

    Pillow computes in integers of 32 bits, which float64 holds exactly, and rounds after each
    direction. Rows first, as Pillow up to 12; since 13 it begins with the cheaper direction, which
    is the same for square images.
    """
    height, width = size
    x = images.to(torch.float64)
    x = _to_8_bits(x @ _matrix(_pil_weights, x.shape[3], width, x.device).T)
    x = _to_8_bits(_matrix(_pil_weights, x.shape[2], height, x.device) @ x)
    return x.float()


RESIZES = {
    "tf1": Resize("TensorFlow 1 bilinear", tf1_bilinear),
    "legacy": Resize("half-pixel bilinear without antialias (pytorch-fid)", legacy_bilinear),
    "clean": Resize("antialiased bicubic on floats (clean-fid)", clean_bicubic),
    "pil-bicubic": Resize("antialiased bicubic on 8 bits (Pillow)", pil_bicubic),
}
"""Name -> resize."""


def _separable(
    x: Float[Tensor, "B C H W"], size: Size, weights: "Weights"
) -> Float[Tensor, "B C h w"]:
    rows = _matrix(weights, x.shape[2], size[0], x.device).to(x.dtype)
    columns = _matrix(weights, x.shape[3], size[1], x.device).to(x.dtype)
    return rows @ (x @ columns.T)


def _to_8_bits(x: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
    return ((x + 2 ** (PIL_BITS - 1)) / 2**PIL_BITS).floor().clamp(0, 255)


Weights = Callable[[int, int], Float64[Tensor, "to from"]]


@lru_cache(maxsize=64)
def _matrix(weights: Weights, length: int, new_length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # kept beyond the mode of the first caller
        return weights(length, new_length).to(device)


def _tf1_weights(length: int, new_length: int) -> Float64[Tensor, "to from"]:
    """Row i holds what pixel i takes from its two neighbours; positions in float32, as there."""
    position = torch.arange(new_length, dtype=torch.float32) * torch.tensor(length / new_length)
    low = position.long()
    high = (low + 1).clamp_max(length - 1)
    share = (position - low).double()
    row = torch.arange(new_length)
    matrix = torch.zeros(new_length, length, dtype=torch.float64)
    matrix.index_put_((row, low), 1 - share, accumulate=True)
    matrix.index_put_((row, high), share, accumulate=True)
    return matrix


def _bicubic_weights(length: int, new_length: int) -> Float64[Tensor, "to from"]:
    """Row i holds Keys' cubic around the centre of pixel i, stretched when the image shrinks."""
    scale = length / new_length
    stretch = max(scale, 1.0)
    centre = (torch.arange(new_length, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(length, dtype=torch.float64)
    # Pillow takes the pixels within the support, both ends rounded to the nearest whole pixel.
    first = (centre - BICUBIC_SUPPORT * stretch + 0.5).trunc().clamp_min(0)
    last = (centre + BICUBIC_SUPPORT * stretch + 0.5).trunc().clamp_max(length)
    inside = (pixel >= first) & (pixel < last)
    weights = _cubic((pixel + 0.5 - centre) / stretch) * inside
    return weights / weights.sum(1, keepdim=True)


def _pil_weights(length: int, new_length: int) -> Float64[Tensor, "to from"]:
    """The same in whole numbers, rounded half away from zero."""
    scaled = _bicubic_weights(length, new_length) * 2**PIL_BITS
    return (scaled + torch.copysign(torch.tensor(0.5), scaled)).trunc()


def _cubic(x: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
    """Keys 1981, "Cubic convolution interpolation", Eq. 4."""
    a, x = BICUBIC_A, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
