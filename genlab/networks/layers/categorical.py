"""A pixel's value as one of a few levels: a softmax over all of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import override

from genlab.networks.autoregressive import PixelDistribution
from genlab.networks.layers.precision import wide


@dataclass(frozen=True)
class Categorical(PixelDistribution):
    """One channel whose levels have a probability each, without any order among them.

    A pixel takes one uniform number, through the inverse of the distribution function.

    Attributes:
        num_levels: P, values that the channel can take: 256 for 8-bit images, the number of codes
            for a codebook.

    Source: van den Oord et al. 2016, arXiv:1601.06759, section 3.3.
    """

    num_levels: int

    @property
    def num_channels(self) -> int:
        """One."""
        return 1

    @property
    def num_params(self) -> int:
        """A logit for each level."""
        return self.num_levels

    @property
    def num_uniforms(self) -> int:
        """One."""
        return 1

    @override
    def log_prob(
        self, params: Float[Tensor, "B P *S"], pixels: Float[Tensor, "B 1 *S"]
    ) -> Float[Tensor, " B *S"]:
        logits = params.to(wide(params.dtype))
        return logits.log_softmax(1).gather(1, to_levels(pixels, self.num_levels))[:, 0]

    @override
    def level_log_probs(
        self, params: Float[Tensor, "B P *S"], channel: int, before: Float[Tensor, "B 0 *S"]
    ) -> Float[Tensor, "B L *S"]:
        return params.to(wide(params.dtype)).log_softmax(1)

    @override
    def sample(
        self,
        params: Float[Tensor, "B P *S"],
        uniforms: Float[Tensor, "B 1 *S"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "B 1 *S"]:
        """The temperature divides the logits."""
        if temperature == 0:
            levels = params.argmax(1, keepdim=True)
        else:
            # Sums of many small probabilities: in the width of the uniform numbers or wider.
            logits = params.to(wide(params.dtype))
            below = (logits / temperature).softmax(1).cumsum(1)
            # Measured by the last sum, which is 1 up to rounding, no level is above the last one.
            levels = (uniforms * below[:, -1:] >= below).sum(1, keepdim=True)
        pixels = from_levels(levels.clamp(max=self.num_levels - 1), self.num_levels)
        return pixels.to(wide(params.dtype))

    @override
    def guide(
        self,
        params: Float[Tensor, "B P *S"],
        null_params: Float[Tensor, "B P *S"],
        scale: float,
    ) -> Float[Tensor, "B P *S"]:
        """Logits move along the line through both."""
        return null_params + scale * (params - null_params)


def to_levels(pixels: Float[Tensor, "*S"], num_levels: int) -> Int64[Tensor, "*S"]:
    """The nearest level, 0 ... num_levels - 1, of pixels in [-1, 1]."""
    levels = ((pixels + 1) * ((num_levels - 1) / 2)).round().long()
    return levels.clamp(0, num_levels - 1)


def from_levels(levels: Int64[Tensor, "*S"], num_levels: int) -> Float[Tensor, "*S"]:
    """Levels as float32 pixels in [-1, 1]."""
    return levels.to(torch.float32) / ((num_levels - 1) / 2) - 1
