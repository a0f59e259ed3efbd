"""Jacobi decoding: all pixels at once, again and again, until nothing changes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.samplers.autoregressive.base import Canvas, PixelModel
from genlab.samplers.autoregressive.precision import Precise
from genlab.samplers.base import Step


@dataclass(frozen=True, kw_only=True)
class Jacobi(Precise):
    """Fixed-point iteration: draw every pixel anew from the image of the iteration before.

    With the uniform numbers fixed, the image is the only one that its own parameters draw again.
    Each iteration settles at least the first pixel that is not settled yet, and usually many; it
    ends when an image comes out as it went in. Yields after every row that is settled; what is
    below it is a guess.

    Choose it where all pixels side by side cost little more than one does: small batches on a GPU.

    Costs at most H W evaluations of the network, one an iteration.

    Source: Song et al. 2021, arXiv:2002.03629, Algorithm 1; Wiggers and Hoogeboom 2020,
    arXiv:2002.09928.
    """

    def __call__(self, model: PixelModel, canvas: Canvas) -> Iterator[Step]:
        """Repeat passes of the whole network until no pixel changes."""
        model.compute_in(self.dtype(model))
        x = model.blank(canvas)
        height, width = x.shape[2:]
        rows, settled = 0, 0
        while rows < height:
            before = x
            params = model.params(before)
            x = canvas.settle(
                model.distribution.sample(params, canvas.uniforms, canvas.temperature)
            )
            # The first pixel that changed is right now: those before it did not change.
            settled = max(settled, _first_change(before, x)) + 1
            while rows < min(settled // width, height):
                yield Step(index=rows, num_steps=height, x=x)
                rows += 1


def _first_change(before: Float[Tensor, "B C H W"], after: Float[Tensor, "B C H W"]) -> int:
    """Number of pixels, in raster order, before the first one that differs in any image."""
    changed = (before != after).flatten(2).any(1).any(0)
    return int(torch.cat([changed, changed.new_ones(1)]).int().argmax())
