"""The spaces in which one prediction can be written: x0, the noise, the velocities.

At a noise level each is an affine function of any other, given the noisy image. Guidance that is
not affine itself (projections, norms, thresholds) does something else in each of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from genlab.diffusion.denoiser import Sigma, State, rows
from genlab.errors import ConfigError, nearest

Scale = Tensor | float


@dataclass(frozen=True)
class Space:
    """How a prediction is written, by the noisy image ``x = x0 + sigma eps``.

    Attributes:
        of: (x0, eps, sigma) -> the value in this space.
        x0: (value, x, sigma) -> the denoised estimate.
    """

    of: Callable[[Tensor, Tensor, Scale], Tensor]
    x0: Callable[[Tensor, Tensor, Scale], Tensor]

    def express(self, x0: State, x: State, sigma: Sigma) -> State:
        """A denoised estimate in this space.

        Args:
            x0: the estimate, (B, C, H, W).
            x: the noisy images that it is of, in the unscaled frame.
            sigma: their noise level, > 0; of the batch, or one for each sample.
        """
        level = rows(sigma.to(x.dtype), x)
        return self.of(x0, (x - x0) / level, level)

    def estimate(self, value: State, x: State, sigma: Sigma) -> State:
        """The denoised estimate that a value in this space stands for; see `express`."""
        return self.x0(value, x, rows(sigma.to(x.dtype), x))


SPACES: Mapping[str, Space] = {
    "x0": Space(lambda x0, eps, s: x0, lambda x0, x, s: x0),
    "eps": Space(lambda x0, eps, s: eps, lambda eps, x, s: x - s * eps),
    "v": Space(
        lambda x0, eps, s: (eps - s * x0) * (1 + s**2) ** -0.5,
        lambda v, x, s: (x - s * (1 + s**2) ** 0.5 * v) / (1 + s**2),
    ),
    "flow-v": Space(lambda x0, eps, s: eps - x0, lambda u, x, s: (x - s * u) / (1 + s)),
}
"""``v`` is that of Salimans and Ho (arXiv:2202.00512, Appendix D), ``flow-v`` the velocity
``eps - x0`` of straight paths, with time running to noise."""


def space_of(name: str) -> Space:
    """A space by its name.

    Raises:
        ConfigError: there is no such space.
    """
    if name not in SPACES:
        raise ConfigError(f"there is no space {name!r} of predictions; {nearest(name, SPACES)}")
    return SPACES[name]
