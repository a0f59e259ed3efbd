"""Naive decoding: the whole network for every pixel."""

from collections.abc import Iterator
from dataclasses import dataclass

from genlab.samplers.autoregressive.base import Canvas, PixelModel
from genlab.samplers.autoregressive.precision import Precise
from genlab.samplers.base import Step


@dataclass(frozen=True, kw_only=True)
class Naive(Precise):
    """An evaluation of the network on whole images for every pixel, of which one pixel is kept.

    Choose it only to check the others against it. Yields after every row.

    Costs H W evaluations of the network.

    Source: van den Oord et al. 2016, arXiv:1606.05328, whose models are drawn so.
    """

    def __call__(self, model: PixelModel, canvas: Canvas) -> Iterator[Step]:
        """Run the whole network once for each pixel."""
        model.compute_in(self.dtype(model))
        x = model.blank(canvas)
        height, width = x.shape[2:]
        for i in range(height):
            for j in range(width):
                params = model.params(x)[:, :, i, j]
                drawn = model.distribution.sample(
                    params, canvas.uniforms[:, :, i, j], canvas.temperature
                )
                x[:, :, i, j] = canvas.settle_pixel(i, j, drawn)
            yield Step(index=i, num_steps=height, x=x.clone())
