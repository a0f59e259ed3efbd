"""Cached decoding: every layer computes every pixel once."""

from collections.abc import Iterator
from dataclasses import dataclass

from genlab.networks.layers.precision import wide
from genlab.samplers.autoregressive.base import Canvas, PixelModel
from genlab.samplers.autoregressive.precision import Precise
from genlab.samplers.base import Step


@dataclass(frozen=True, kw_only=True)
class Cached(Precise):
    """Pixel after pixel, with what the layers have computed before kept.

    Choose it unless another is to be compared with it. Yields after every row.

    Costs about one evaluation of the network on whole images.

    Source: Ramachandran et al. 2017, arXiv:1704.06001.
    """

    def __call__(self, model: PixelModel, canvas: Canvas) -> Iterator[Step]:
        """Compute every layer once for each pixel."""
        dtype = self.dtype(model)
        x = model.blank(canvas).to(wide(dtype))
        height, width = x.shape[2:]
        decoder = model.decoder(height, width, dtype)
        for i in range(height):
            for j in range(width):
                uniforms = canvas.uniforms[:, :, i, j]
                params = decoder.params(i, j)
                drawn = model.distribution.sample(params, uniforms, canvas.temperature)
                x[:, :, i, j] = pixel = canvas.settle_pixel(i, j, drawn)
                decoder.put(i, j, pixel)
            yield Step(index=i, num_steps=height, x=x.clone())
