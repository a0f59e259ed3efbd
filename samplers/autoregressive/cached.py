"""Cached decoding: every layer computes every pixel once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from genlab.samplers.autoregressive.base import Canvas, PixelModel
from genlab.samplers.base import Step


@dataclass(frozen=True, kw_only=True)
class Cached:
    """Pixel after pixel, with what the layers have computed before kept.

    Its cost is about that of one evaluation of the network on whole images: the decoder to choose
    unless another is to be compared with it. Yields after every row.

    Source: Ramachandran et al. 2017, arXiv:1704.06001.
    """

    def __call__(self, model: PixelModel, canvas: Canvas) -> Iterator[Step]:
        """See `Decoder`."""
        batch, _, height, width = canvas.uniforms.shape
        decoder = model.decoder(height, width)
        rows = []
        for i in range(height):
            row = []
            for j in range(width):
                uniforms = canvas.uniforms[:, :, i, j]
                params = decoder.params(i, j)
                drawn = model.distribution.sample(params, uniforms, canvas.temperature)
                pixel = canvas.settle_pixel(i, j, drawn)
                decoder.put(i, j, pixel)
                row.append(pixel)
            rows.append(torch.stack(row, dim=2))
            ahead = rows[0].new_zeros(batch, rows[0].shape[1], height - i - 1, width)
            x = torch.cat([torch.stack(rows, dim=2), ahead], dim=2)
            yield Step(index=i, num_steps=height, x=x)
