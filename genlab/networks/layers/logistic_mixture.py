"""The discretised mixture of logistics: the distribution of a pixel in PixelCNN++.

Legend: B batch, C channels, K mixture components, P parameters, U uniform numbers, ``*S`` further
axes (height and width, or none).

The parameters of a pixel are the K logits of the components, then means and log-scales of each
channel. Colour pixels choose one component for all three channels, and the means of green and blue
shift linearly with the channels before them; the K coefficients of each of the three shifts follow
the log-scales of a channel (green from red in the first channel, blue from red in the second, blue
from green in the third).

Source: Salimans et al. 2017, arXiv:1701.05517, section 2.1 and 2.2; numerical details as in the
code of that paper.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.networks.autoregressive import PixelDistribution
from genlab.networks.layers.categorical import from_levels
from genlab.networks.layers.precision import wide

MIN_LOG_SCALE = -7.0
"""Log-scales are raised to this; below it their gradient is zero."""

EDGE = 0.999
"""Pixels beyond +-EDGE get the whole tail of the distribution."""

SMALL = 1e-5
"""Bins of no more than this probability are taken as density times width, which has a gradient
where the difference of two sigmoids has none; drawn uniform numbers keep this off 0 and 1."""


@dataclass(frozen=True)
class Components:
    """The parameters of a pixel, taken apart.

    Attributes:
        logits: of the components, (B, K, *S).
        means: before the shift, (B, C, K, *S).
        log_scales: at least `MIN_LOG_SCALE`, (B, C, K, *S).
        shifts: factors of the channels before, in (-1, 1), (B, 3, K, *S); None for one channel.
    """

    logits: Tensor
    means: Tensor
    log_scales: Tensor
    shifts: Tensor | None

    def pick(self, index: Tensor) -> "Components":
        """The parameters of one component; ``index`` is (B, 1, *S), and K becomes 1."""
        each = index[:, None]

        def of(values: Tensor) -> Tensor:
            return values.gather(2, each.expand(-1, values.shape[1], *each.shape[2:]))

        shifts = None if self.shifts is None else of(self.shifts)
        return Components(self.logits.gather(1, index), of(self.means), of(self.log_scales), shifts)

    def mean(self, channel: int, pixels: Tensor) -> Tensor:
        """Means of a channel (B, K, *S) given the true values of those before it (B, c, *S)."""
        mean = self.means[:, channel]
        if self.shifts is None or channel == 0:
            return mean
        if channel == 1:
            return mean + self.shifts[:, 0] * pixels[:, :1]
        return mean + self.shifts[:, 1] * pixels[:, :1] + self.shifts[:, 2] * pixels[:, 1:2]


@dataclass(frozen=True, kw_only=True)
class LogisticMixture(PixelDistribution):
    """A discretised mixture of logistics over 256 levels.

    Attributes:
        channels: 1 or 3.
        num_mixtures: K.
        rounded: whether drawn pixels are rounded to the 256 levels, each channel before the next
            one, which is the distribution that `log_prob` tells. The official code feeds the
            network what was drawn without rounding.
    """

    channels: int
    num_mixtures: int = 10
    rounded: bool = True
    num_levels: int = field(default=256, init=False)  # `_log_bin` and its limits are for 256

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(
                f"a mixture of logistics is defined for 1 or 3 channels, got {self.channels}"
            )

    @property
    def num_channels(self) -> int:
        """C."""
        return self.channels

    @property
    def num_params(self) -> int:
        """3 K for one channel, 10 K for three."""
        return self.num_mixtures * (3 if self.channels == 1 else 10)

    @property
    def num_uniforms(self) -> int:
        """K to choose the component, then one for each channel."""
        return self.num_mixtures + self.channels

    def components(self, params: Float[Tensor, "B P *S"]) -> Components:
        """Take parameters apart; see the head of this file for their order."""
        per_channel = 2 if self.channels == 1 else 3
        logits, rest = params.split([self.num_mixtures, params.shape[1] - self.num_mixtures], 1)
        parts = rest.unflatten(1, (self.channels, per_channel, self.num_mixtures))
        return Components(
            logits,
            parts[:, :, 0],
            parts[:, :, 1].clamp(min=MIN_LOG_SCALE),
            parts[:, :, 2].tanh() if self.channels == 3 else None,
        )

    @override
    def log_prob(
        self, params: Float[Tensor, "B P *S"], pixels: Float[Tensor, "B C *S"]
    ) -> Float[Tensor, " B *S"]:
        parts = self.components(params.to(wide(params.dtype)))
        total = parts.logits.log_softmax(1)
        for channel in range(self.channels):
            x = pixels[:, channel : channel + 1]
            total = total + _log_bin(x, parts.mean(channel, pixels), parts.log_scales[:, channel])
        return total.logsumexp(1)

    @override
    def level_log_probs(
        self, params: Float[Tensor, "B P *S"], channel: int, before: Float[Tensor, "B c *S"]
    ) -> Float[Tensor, "B L *S"]:
        """The channels before weigh the components."""
        parts = self.components(params.to(wide(params.dtype)))
        weights = parts.logits.log_softmax(1)
        for c in range(channel):
            x = before[:, c : c + 1]
            weights = weights + _log_bin(x, parts.mean(c, before), parts.log_scales[:, c])
        weights = weights.log_softmax(1)
        levels = from_levels(torch.arange(self.num_levels, device=params.device), self.num_levels)
        x = levels.to(weights.dtype).reshape(1, -1, *[1] * (params.ndim - 2))
        means, log_scales = parts.mean(channel, before), parts.log_scales[:, channel]
        total = torch.full((), -math.inf, dtype=weights.dtype, device=weights.device)
        for k in range(self.num_mixtures):  # all components at once would be a lot of memory
            one = slice(k, k + 1)
            log_bins = _log_bin(x, means[:, one], log_scales[:, one])
            total = torch.logaddexp(total, weights[:, one] + log_bins)
        return total

    @override
    def sample(
        self,
        params: Float[Tensor, "B P *S"],
        uniforms: Float[Tensor, "B U *S"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "B C *S"]:
        """Draw the component by the Gumbel trick, the value by the inverse distribution function.

        A temperature divides the logits of the components and multiplies the scales.
        """
        params = params.to(wide(params.dtype))  # in half precision 1 - SMALL is 1
        parts = self.components(params)
        u = uniforms.to(params.dtype).clamp(SMALL, 1 - SMALL)
        gumbel = u[:, : self.num_mixtures].log().neg_().log_().neg_()
        chosen = parts.pick((parts.logits + temperature * gumbel).argmax(1, keepdim=True))
        noise = temperature * u[:, self.num_mixtures :].logit()
        drawn = torch.empty_like(noise)
        for channel in range(self.channels):
            scale = chosen.log_scales[:, channel].exp()
            value = chosen.mean(channel, drawn)[:, 0] + scale[:, 0] * noise[:, channel]
            drawn[:, channel] = self._settle(value.clamp_(-1, 1))
        return drawn

    def guide(
        self,
        params: Float[Tensor, "B P *S"],
        null_params: Float[Tensor, "B P *S"],
        scale: float,
    ) -> Float[Tensor, "B P *S"]:
        """Extrapolate every parameter, component by component, from the null class.

        Logits, means, log-scales and shifts each move along the line from the null class through
        the class. That is a rule of thumb: the product of powers of two mixtures, which guidance of
        plain logits amounts to, is no mixture of logistics.
        """
        return null_params + scale * (params - null_params)

    def _settle(self, value: Tensor) -> Tensor:
        if not self.rounded:
            return value
        half = (self.num_levels - 1) / 2
        return value.add_(1).mul_(half).round_().div_(half).sub_(1)


def _log_bin(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of the bin around ``x``, for each component."""
    precision = (-log_scale).exp()
    centred = x - mean
    upper, lower = precision * (centred + 1 / 255), precision * (centred - 1 / 255)
    middle = precision * centred
    probability = upper.sigmoid() - lower.sigmoid()
    density = middle - log_scale - 2 * F.softplus(middle)
    inside = torch.where(
        probability > SMALL, probability.clamp(min=1e-12).log(), density - math.log(127.5)
    )
    inside = torch.where(x > EDGE, -F.softplus(lower), inside)
    return torch.where(x < -EDGE, upper - F.softplus(upper), inside)
