"""The precision that decoders compute in, and why it is float64."""

from dataclasses import dataclass

import torch

from genlab import compute
from genlab.choices import check_choice
from genlab.samplers.autoregressive.base import PixelModel

PRECISIONS = ("float64", "network")


@dataclass(frozen=True, kw_only=True)
class Precise:
    """What all decoders share.

    A drawn pixel jumps from one level to the next where a number crosses a border, and every later
    pixel follows the jump. Whole-image convolutions, products of single pixels and other batch
    sizes sum in other orders, so their numbers differ by rounding: in float32 by 1e-7 to 1e-6,
    where the levels of 8-bit images lie 8e-3 apart. Then one pixel in some ten thousand lies so
    near a border that two decoders draw it differently (of 32 colour images of 32x32 pixels, cached
    and Jacobi decoding drew 4 differently, with a small network of random weights). In float64
    about one pixel in 1e12 does: in practice none, though nothing forbids it.

    Attributes:
        precision: ``float64``, which makes an image the same for every decoder, batch size and
            device (Metal, which has none, takes float32); or ``network``, the dtype of the
            network's weights: faster, the same image only for the same decoder and batch size.
    """

    precision: str = "float64"

    def __post_init__(self) -> None:
        check_choice("a decoder's precision", self.precision, PRECISIONS)

    def dtype(self, model: PixelModel) -> torch.dtype:
        """What to compute a model in."""
        if self.precision == "network":
            return model.network.dtype
        return compute.widest(model.network.device)
