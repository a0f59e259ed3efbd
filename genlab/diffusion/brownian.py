"""A Brownian path for each sample, over the noise level: what stochastic solvers may draw from."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError

DEPTH = 24
"""Halvings of the range in ln sigma. The last pieces, of the range of EDM's schedule, are 6e-7 of
their noise level wide: far below the distance of two levels that any run visits."""


class BrownianPath:
    """The noise of a stochastic run as increments of one path: it does not depend on the steps.

    Runs of 20 and of 40 steps that draw from the same path see the same noise, coarsely and finely,
    and so lead to nearly the same picture. The path is found by halving the range in ln sigma: the
    value in the middle of two known ones is normal around the line between them. Each middle has a
    fork of the noise to itself, so that the order of questions does not matter.

    A question costs `DEPTH` draws of the shape of a sample, less what the one before has found.

    Args:
        noise: streams of the samples; the path draws from forks of them alone.
        shape: of a sample.
        sigma_min: where the path begins, > 0; nothing is known below.
        sigma_max: where it ends.

    Raises:
        ConfigError: the range is empty.

    Source: the virtual Brownian tree of Li et al. (arXiv:2001.01328), here over ln sigma.
    """

    def __init__(
        self, noise: Noise, shape: Sequence[int], sigma_min: float, sigma_max: float
    ) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ConfigError(
                "a Brownian path needs 0 < sigma_min < sigma_max, got "
                f"{sigma_min:g} and {sigma_max:g}"
            )
        self._noise = noise
        self._shape = tuple(shape)
        self._low, self._high = math.log(sigma_min), math.log(sigma_max)
        # The ends of the pieces that the last question went through, by number: (depth, place).
        self._known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, sigma: float, sigma_next: float) -> Float64[Tensor, "B ..."]:
        """Unit normal noise between two levels: ``(W(sigma) - W(sigma_next)) / sqrt(their gap)``.

        Args:
            sigma: a noise level in the range.
            sigma_next: another one; the sign changes where it is the larger.

        Raises:
            ConfigError: the levels are equal, or outside the range.
        """
        gap = abs(sigma - sigma_next)
        if gap == 0:
            raise ConfigError(f"there is no noise between equal noise levels, {sigma:g} twice")
        return (self.value(sigma) - self.value(sigma_next)) / math.sqrt(gap)

    def value(self, sigma: float) -> Float64[Tensor, "B ..."]:
        """The path at a noise level, 0 at the smallest.

        Raises:
            ConfigError: the level is outside the range.
        """
        # Rounding may move an end of the range by a little.
        place = (math.log(sigma) - self._low) / (self._high - self._low) if sigma > 0 else -1.0
        if not -1e-9 <= place <= 1 + 1e-9:
            low, high = math.exp(self._low), math.exp(self._high)
            raise ConfigError(
                f"the Brownian path runs from {low:g} to {high:g}, not to the noise level {sigma:g}"
            )
        index, depth = 0, 0
        left, right = self._end(0, 0), self._end(0, 1)
        kept = {(0, 0): left, (0, 1): right}
        while depth < DEPTH:
            middle = self._middle(depth, index, left, right)
            depth, index = depth + 1, 2 * index + 1
            kept[depth, index] = middle
            if place * 2**depth < index:
                index, right = index - 1, middle
            else:
                left = middle
        self._known = kept
        a, b = self._sigma(depth, index), self._sigma(depth, index + 1)
        return left + min(max((sigma - a) / (b - a), 0.0), 1.0) * (right - left)

    def _end(self, depth: int, index: int) -> Float64[Tensor, "B ..."]:
        """The path at either end of the range."""
        if (depth, index) in self._known:
            return self._known[depth, index]
        drawn = self._draw("end")
        if index == 0:
            return torch.zeros_like(drawn)
        return math.sqrt(self._sigma(0, 1) - self._sigma(0, 0)) * drawn

    def _middle(
        self, depth: int, index: int, left: Tensor, right: Tensor
    ) -> Float64[Tensor, "B ..."]:
        """The path in the middle of a piece whose ends are known."""
        place = (depth + 1, 2 * index + 1)
        if place in self._known:
            return self._known[place]
        a, m, b = self._sigma(depth, index), self._sigma(*place), self._sigma(depth, index + 1)
        share = (m - a) / (b - a)
        std = math.sqrt((m - a) * (b - m) / (b - a))
        return left + share * (right - left) + std * self._draw(f"{place[0]} {place[1]}")

    def _draw(self, key: str) -> Tensor:
        return self._noise.fork(f"brownian {key}").randn(self._shape, torch.float64)

    def _sigma(self, depth: int, index: int) -> float:
        """The noise level of a point: ``index`` of ``2**depth`` equal parts in ln sigma."""
        return math.exp(self._low + (self._high - self._low) * index / 2**depth)
