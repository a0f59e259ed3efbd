"""3x3 convolution with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).

The image is cut into 6x6 tiles that overlap by 2. Tiles and kernels are transformed, multiplied
pointwise (which over channels is 36 matrix products) and transformed back to 4x4 output pixels::

    Y = A^T [ (G g G^T) * (B^T d B) ] A

This is exact but for rounding. The textbook points 0, +-1, +-2 would double the error; with
0, +-5/8, +-3/2 it is 1.3e-6 (relative, float32, 256 channels), next to 0.9e-6 of the direct
convolution in channels_last.

Source: Lavin and Gray 2016, arXiv:1509.09308; why points matter: Barabasz et al. 2020,
arXiv:1803.10986.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional as F

from genlab.compute import workers

OUT, KERNEL = 4, 3
TILE = OUT + KERNEL - 1
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)  # and infinity

MIN_PIXELS, MIN_CHANNELS = 16 * 16, 128
"""Below these, transforming the kernel costs more than it saves. The batch size is left out of the
rule on purpose: an image must not depend on which others are drawn with it."""

CHUNK = 1 << 20
"""Numbers of transformed input that a thread works on, 4 MB: larger arrays are slower to reach."""


def transforms(points: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Cook-Toom matrices for a 1-d filter, from its interpolation points and infinity.

    Returns:
        B^T (n, n), G (n, 3) and A^T (n - 2, n) in float64, n = len(points) + 1. Rows of B^T and G
        are balanced by powers of two, which rounding does not see.
    """
    n = len(points) + 1

    def evaluate(degree: int) -> Tensor:
        powers = [[p**k for k in range(degree)] for p in points]
        at_infinity = [0.0] * (degree - 1) + [1.0]
        return torch.tensor([*powers, at_infinity], dtype=torch.float64)

    data = torch.linalg.inv(evaluate(n)).T
    scale = torch.tensor([2.0 ** round(math.log2(row.abs().max())) for row in data])
    return data / scale[:, None], evaluate(KERNEL) * scale[:, None], evaluate(n - 2).T


# In two dimensions: rows and columns at once, tiles as flat vectors.
DATA, WEIGHT, OUTPUT = (torch.kron(m, m).float() for m in transforms(POINTS))


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the convolution of ``x`` with ``weight`` (stride 1, same size) gains from this file.

    Not where gradients are wanted: the backward pass of the direct convolution is the better one.
    """
    height, width = x.shape[2:]
    return (
        weight.shape[2:] == (KERNEL, KERNEL)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and height * width >= MIN_PIXELS
        and height % OUT == width % OUT == 0
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
    )


@torch.library.custom_op(
    "genlab::winograd_conv3x3",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor",
)
def conv3x3(
    x: Float32[Tensor, "B C H W"],
    weight: Float32[Tensor, "D C 3 3"],
    bias: Float32[Tensor, " D"],
) -> Float32[Tensor, "B D H W"]:
    """Convolve with zero padding 1; see `suits` for what it takes.

    Args:
        x: features, H and W multiples of 4; channels_last is fastest.
        weight: kernel, as of an ordinary convolution.
        bias: one number for each output channel.

    Returns:
        Features in channels_last.
    """
    # An operator of its own, so that a compiler takes it as it is instead of looking inside.
    batch, channels, height, width = x.shape
    rows, columns = height // OUT, width // OUT
    kernel = (WEIGHT @ weight.permute(2, 3, 0, 1).reshape(KERNEL**2, -1)).view(
        TILE**2, -1, channels
    )
    result = x.new_empty(batch, rows, OUT, columns, OUT, kernel.shape[1])
    threads = torch.get_num_threads()
    step = min(CHUNK // (TILE**2 * rows * columns * channels), math.ceil(batch / threads))
    step = max(1, step)

    @torch.inference_mode()  # modes belong to a thread
    def convolve(start: int) -> None:
        images = F.pad(x[start : start + step].permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        tiles = images.unfold(1, TILE, OUT).unfold(2, TILE, OUT).permute(4, 5, 0, 1, 2, 3)
        data = (DATA @ tiles.reshape(TILE**2, -1)).view(TILE**2, -1, channels)
        output = OUTPUT @ torch.bmm(data, kernel.mT).view(TILE**2, -1)
        pixels = output.view(OUT, OUT, len(images), rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
        torch.add(pixels, bias, out=result[start : start + step])

    starts = range(0, batch, step)
    if threads == 1 or len(starts) == 1:
        for start in starts:
            convolve(start)
    else:
        # Not torch's own threads: they would wait for each other after each of the small steps.
        list(workers(threads).map(convolve, starts))
    return result.view(batch, height, width, -1).permute(0, 3, 1, 2)


@conv3x3.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, len(weight)).permute(0, 3, 1, 2)
