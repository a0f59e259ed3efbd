"""Geometric transformations of images in one well-filtered pass.

An image is padded by reflection, doubled with the low-pass filter of the sym6 wavelet, sampled
bilinearly on the transformed grid (zero outside), and halved with the same filter. The filter is
orthonormal to its even shifts, so halving undoes doubling: the identity leaves an image as it is.

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data",
arXiv:2006.06676, appendix B; the filter is Daubechies' least asymmetric wavelet with 6 vanishing
moments ("Ten Lectures on Wavelets", table 6.3).
"""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The twelve taps, sum sqrt(2); the main one is the sixth, so tap 5 sits on the sample."""

CENTRE = 5
RIM = 3
"""Pixels drawn beyond each edge of the output, because halving needs the neighbours."""

REACH = 4
"""How many pixels of the input a bilinear sample of the doubled image can touch to each side."""


def warp(images: Float[Tensor, "B C H W"], source: Float[Tensor, "B 3 3"]) -> Tensor:
    """Resample each image under its own affine map.

    Args:
        images: (B, C, H, W).
        source: for each image the homogeneous matrix that takes a place (x to the right, y down,
            in pixels from the image's centre) in the result to the place in the image whose value
            it gets: the inverse of what the content undergoes.

    Returns:
        (B, C, H, W). What lies farther outside than one reflection reaches (H - 1 or W - 1 pixels)
        is 0. An image's result does not depend on which others are in the batch.
    """
    height, width = images.shape[2:]
    places = _places(height, width, images.device)
    positions = torch.einsum("bij,jhw->bhwi", source, places)[..., :2]
    corner = positions.new_tensor([(width - 1) / 2, (height - 1) / 2])
    index = positions + corner  # x, y counted from the first pixel
    left, top, right, bottom = _margins(index, height, width)
    padded = F.pad(images, (left, right, top, bottom), mode="reflect")
    fine = _double(padded)
    # Pixel i of the padded image is pixel 2 i of the doubled one; grid_sample wants -1 and 1 at the
    # outer edges of the first and last pixel.
    fine_index = 2 * (index + index.new_tensor([left, top]))
    size = index.new_tensor([fine.shape[3], fine.shape[2]])
    grid = ((2 * fine_index + 1) / size - 1).to(images.dtype)
    sampled = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _halve(sampled)[:, :, RIM:-RIM, RIM:-RIM]


def _places(height: int, width: int, device: torch.device) -> Float[Tensor, "3 H2 W2"]:
    """The doubled output's samples, rim included, as homogeneous places from the centre."""
    y = torch.arange(2 * (height + 2 * RIM), device=device) / 2
    x = torch.arange(2 * (width + 2 * RIM), device=device) / 2
    rows, columns = torch.meshgrid(
        y - RIM - (height - 1) / 2, x - RIM - (width - 1) / 2, indexing="ij"
    )
    return torch.stack([columns, rows, torch.ones_like(rows)])


def _margins(
    index: Float[Tensor, "B H2 W2 2"], height: int, width: int
) -> tuple[int, int, int, int]:
    """How far to pad: left, top, right, bottom, at most what reflection can give."""
    low = (REACH - index.amin(dim=(0, 1, 2))).tolist()
    high = index.amax(dim=(0, 1, 2)).tolist()
    need = [*low, high[0] - (width - 1) + REACH, high[1] - (height - 1) + REACH]
    most = [width - 1, height - 1] * 2
    left, top, right, bottom = (
        min(max(math.ceil(n), 0), m) for n, m in zip(need, most, strict=True)
    )
    return left, top, right, bottom


def _taps(images: Tensor) -> Float[Tensor, "1 1 12"]:
    return torch.tensor(SYM6, dtype=images.dtype, device=images.device)[None, None]


def _double(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """Twice the size; a constant image c becomes c / 2, which `_halve` makes good."""
    taps = _taps(images)
    planes = rearrange(images, "b c h w -> (b c) 1 h w")
    planes = F.conv_transpose2d(planes, taps[:, :, None], stride=(1, 2), padding=(0, CENTRE))
    planes = F.conv_transpose2d(planes, taps[..., None], stride=(2, 1), padding=(CENTRE, 0))
    return rearrange(planes, "(b c) 1 h w -> b c h w", c=images.shape[1])


def _halve(images: Float[Tensor, "B C H2 W2"]) -> Float[Tensor, "B C H W"]:
    """Half the size: the adjoint of `_double`, and its inverse on what `_double` gives."""
    taps = _taps(images)
    planes = rearrange(images, "b c h w -> (b c) 1 h w")
    planes = F.conv2d(planes, taps[:, :, None], stride=(1, 2), padding=(0, CENTRE))
    planes = F.conv2d(planes, taps[..., None], stride=(2, 1), padding=(CENTRE, 0))
    return rearrange(planes, "(b c) 1 h w -> b c h w", c=images.shape[1])


def scaling(x: Float[Tensor, " B"], y: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """Matrices that stretch by ``x`` and ``y``."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def rotation(angle: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """Matrices that turn by ``angle``, from the x axis (right) towards the y axis (down)."""
    matrix = _identity(angle)
    cos, sin = angle.cos(), angle.sin()
    matrix[:, 0, 0], matrix[:, 0, 1] = cos, -sin
    matrix[:, 1, 0], matrix[:, 1, 1] = sin, cos
    return matrix


def translation(x: Float[Tensor, " B"], y: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    """Matrices that move by ``x`` pixels right and ``y`` down."""
    matrix = _identity(x)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


def _identity(like: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    eye = torch.eye(3, dtype=like.dtype, device=like.device)
    return repeat(eye, "i j -> b i j", b=len(like)).clone()
