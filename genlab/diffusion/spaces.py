"""The spaces in which one prediction can be written: x0, the noise, the velocities.

At a noise level each is an affine function of any other, given the noisy image. Guidance that is
not affine itself (projections, norms, thresholds) does something else in each of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from genlab.diffusion.denoiser import Sigma, State, rows
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError, nearest

MODEL = "model"
"""The space that the model itself predicts in, whichever that is."""


@dataclass(frozen=True)
class Space:
    """How a prediction is written: as F in ``x0 = c_skip x + c_out F``.

    Attributes:
        scalings: sigma -> (c_skip, c_out), as `NoiseLevels.scalings`; None for x0 itself.
    """

    scalings: Callable[[Tensor], tuple[Tensor, ...]] | None = None

    def express(self, x0: State, x: State, sigma: Sigma) -> State:
        """A denoised estimate in this space.

        Args:
            x0: the estimate, (B, C, H, W).
            x: the noisy images that it is of, in the unscaled frame.
            sigma: their noise level, > 0; of the batch, or one for each sample.
        """
        if self.scalings is None:
            return x0
        c_skip, c_out = self._columns(x, sigma)
        return (x0 - c_skip * x) / c_out

    def estimate(self, value: State, x: State, sigma: Sigma) -> State:
        """The denoised estimate that a value in this space stands for; see `express`."""
        if self.scalings is None:
            return value
        c_skip, c_out = self._columns(x, sigma)
        return c_skip * x + c_out * value

    def origin(self, x: State, sigma: Sigma) -> State | None:
        """The estimate ``c_skip x`` whose value is 0 in this space; None where that is 0, too."""
        return None if self.scalings is None else self._columns(x, sigma)[0] * x

    def _columns(self, x: State, sigma: Sigma) -> tuple[Tensor, Tensor]:
        assert self.scalings is not None
        c_skip, c_out = self.scalings(sigma.to(x.dtype))
        return rows(c_skip, x), rows(c_out, x)


SPACES: Mapping[str, Space] = {
    "x0": Space(),
    "eps": Space(lambda s: (s**0, -s)),
    "v": Space(lambda s: (1 / (1 + s**2), -s * (1 + s**2) ** -0.5)),
    "flow-v": Space(lambda s: (1 / (1 + s), -s / (1 + s))),
}
"""``v`` is that of Salimans and Ho (arXiv:2202.00512, Appendix D), ``flow-v`` the velocity
``eps - x0`` of straight paths, with time running to noise."""


def space_of(name: str, noise_levels: NoiseLevels | None = None) -> Space:
    """A space by its name.

    Args:
        name: one of `SPACES`, or ``model``: that of the network's output.
        noise_levels: those of the model, which tell its own space.

    Raises:
        ConfigError: there is no such space.
    """
    if name == MODEL and noise_levels is not None:
        return Space(noise_levels.scalings)
    if name not in SPACES:
        raise ConfigError(
            f"there is no space {name!r} of predictions; {nearest(name, [*SPACES, MODEL])}"
        )
    return SPACES[name]
