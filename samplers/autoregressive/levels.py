"""Drawing from the probabilities of all levels: exact guidance, temperature and top-p."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from genlab.networks.autoregressive import PixelDistribution
from genlab.networks.layers.categorical import Categorical
from genlab.networks.layers.precision import wide


@dataclass(frozen=True, kw_only=True)
class ByLevels(PixelDistribution):
    """A distribution whose channels are drawn one after the other from all levels' probabilities.

    In this order: guidance, ``log p = log p_null + scale (log p_class - log p_null)``; temperature,
    which divides the log-probabilities; top-p. With none of them it is ``inner`` itself.

    Attributes:
        inner: what the network's parameters are parameters of.
        scale: of guidance by the null class; 1 is off. Otherwise parameters come in pairs, given
            the class and given the null class, 2 P channels in all.
        top_p: the likeliest levels that together have this probability are drawn from, 0 < p <= 1.

    Source: Ho and Salimans (arXiv:2207.12598), Sec. 3.1, for the product of powers; Holtzman et al.
    (arXiv:1904.09751), Sec. 3.1, for top-p.
    """

    inner: PixelDistribution
    scale: float = 1.0
    top_p: float = 1.0

    @property
    def num_levels(self) -> int:  # type: ignore[override]  # that of inner
        """Values that a channel can take."""
        return self.inner.num_levels

    @property
    def num_channels(self) -> int:
        """C."""
        return self.inner.num_channels

    @property
    def num_params(self) -> int:
        """P of ``inner``, twice where it is guided."""
        return self.inner.num_params * (1 if self.scale == 1 else 2)

    @property
    def num_uniforms(self) -> int:
        """Those of ``inner``, of which each channel takes one of the last."""
        return self.inner.num_uniforms

    @override
    def level_log_probs(
        self, params: Float[Tensor, "B P *S"], channel: int, before: Float[Tensor, "B c *S"]
    ) -> Float[Tensor, "B L *S"]:
        """Guided, neither tempered nor cut off."""
        if self.scale == 1:
            return self.inner.level_log_probs(params, channel, before)
        conditional, null = (
            self.inner.level_log_probs(each, channel, before) for each in params.chunk(2, dim=1)
        )
        return (null + self.scale * (conditional - null)).log_softmax(1)

    @override
    def log_prob(
        self, params: Float[Tensor, "B P *S"], pixels: Float[Tensor, "B C *S"]
    ) -> Float[Tensor, " B *S"]:
        """Guided, neither tempered nor cut off."""
        exact = Categorical(self.num_levels)
        channels = range(self.num_channels)
        each = [
            exact.log_prob(self.level_log_probs(params, c, pixels[:, :c]), pixels[:, c : c + 1])
            for c in channels
        ]
        return torch.stack(each).sum(0)

    @override
    def sample(
        self,
        params: Float[Tensor, "B P *S"],
        uniforms: Float[Tensor, "B U *S"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "B C *S"]:
        params = params.to(wide(params.dtype))
        levels = Categorical(self.num_levels)
        pixels = params.new_empty(len(params), 0, *params.shape[2:])
        for channel in range(self.num_channels):
            log_probs = self.level_log_probs(params, channel, pixels)
            number = self.num_uniforms - self.num_channels + channel
            if temperature > 0:
                log_probs = nucleus(log_probs / temperature, self.top_p)
            drawn = levels.sample(log_probs, uniforms[:, number : number + 1], min(temperature, 1))
            pixels = torch.cat([pixels, drawn], dim=1)
        return pixels

    @override
    def guide(
        self, params: Float[Tensor, "B P *S"], null_params: Float[Tensor, "B P *S"], scale: float
    ) -> Float[Tensor, "B Q *S"]:
        """Both side by side, where it is levels that are guided."""
        if self.scale == 1:
            return self.inner.guide(params, null_params, scale)
        return torch.cat([params, null_params], dim=1)


def nucleus(logits: Float[Tensor, "B L *S"], top_p: float) -> Float[Tensor, "B L *S"]:
    """Leave the fewest levels that together have the probability ``top_p``; the others get -inf.

    Of equally likely levels at the border the lowest stay.
    """
    if top_p == 1:
        return logits
    likeliest, order = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    likelier = likeliest.cumsum(1) - likeliest
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, likelier < top_p)
    return logits.masked_fill(~kept, -math.inf)
