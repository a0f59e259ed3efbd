"""Flow matching (SiT): the paths from noise to data, their preconditioning and their loss.

A path is ``x_t = alpha(t) x1 + std(t) x0`` with data ``x1`` and unit noise ``x0``; its time runs
from 0 (noise) to 1 (data). Divided by alpha it is the unscaled frame: ``x = x1 + sigma x0`` with
``sigma = std / alpha``. Pure noise is ``sigma = inf`` there; `LARGEST` stands for it, which float64
cannot tell from it in anything that a sampler computes.

Source: Ma et al., arXiv:2401.08740, Sec. 2 and Table 1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from genlab import compute
from genlab.choices import check_option
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.losses import LossDraws, LossTerms, WeightedLoss
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import Coefficients, Preconditioning
from genlab.errors import ConfigError, nearest

LARGEST = 1e12
"""The noise level that stands for pure noise."""

PREDICTIONS = ("velocity", "noise", "score")
WEIGHTINGS = ("none", "velocity", "likelihood")


class PathPoint(NamedTuple):
    """A path at times t: the two factors and their time derivatives, all shaped as t is."""

    t: Float[Tensor, "*s"]
    alpha: Float[Tensor, "*s"]
    std: Float[Tensor, "*s"]
    alpha_deriv: Float[Tensor, "*s"]
    std_deriv: Float[Tensor, "*s"]

    @property
    def speed(self) -> Float[Tensor, "*s"]:
        """``alpha' std - alpha std'``, the factor between velocities and errors of x1 and x0."""
        return self.alpha_deriv * self.std - self.alpha * self.std_deriv


class Path(ABC):
    """How noise turns into data; computes in the dtype that it is asked in."""

    @abstractmethod
    def at(self, t: Float[Tensor, "*s"]) -> PathPoint:
        """The path at times in [0, 1]."""

    @abstractmethod
    def of(self, sigma: Float[Tensor, "*s"]) -> PathPoint:
        """The path at noise levels >= 0; accurate at small ones, where t hardly differs from 1."""

    def t(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The time of a noise level: 1 at 0, 0 at the largest."""
        return self.of(sigma).t

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The noise level of a time, at most `LARGEST`."""
        point = self.at(t)
        return (point.std / point.alpha).clamp(max=LARGEST)


class Linear(Path):
    """Straight lines: ``alpha = t``, ``std = 1 - t``."""

    @override
    def at(self, t: Float[Tensor, "*s"]) -> PathPoint:
        one = torch.ones_like(t)
        return PathPoint(t, t, 1 - t, one, -one)

    @override
    def of(self, sigma: Float[Tensor, "*s"]) -> PathPoint:
        t = 1 / (1 + sigma)
        return self.at(t)._replace(std=sigma * t)


class GVP(Path):
    """A quarter of a circle, of unit variance throughout (for data that has it)."""

    @override
    def at(self, t: Float[Tensor, "*s"]) -> PathPoint:
        return self._point(t, (0.5 * math.pi * t).sin(), (0.5 * math.pi * t).cos())

    @override
    def of(self, sigma: Float[Tensor, "*s"]) -> PathPoint:
        t = torch.atan2(torch.ones_like(sigma), sigma) * 2 / math.pi
        alpha = (1 + sigma**2).rsqrt()
        return self._point(t, alpha, sigma * alpha)

    def _point(self, t: Tensor, alpha: Tensor, std: Tensor) -> PathPoint:
        return PathPoint(t, alpha, std, 0.5 * math.pi * std, -0.5 * math.pi * alpha)


class VP(Path):
    """The variance-preserving diffusion of Song et al. (betas 0.1 to 20) with time turned round."""

    beta_d: ClassVar[float] = 19.9
    beta_min: ClassVar[float] = 0.1

    @override
    def at(self, t: Float[Tensor, "*s"]) -> PathPoint:
        log_alpha = -0.25 * (1 - t) ** 2 * self.beta_d - 0.5 * (1 - t) * self.beta_min
        return self._point(t, 1 - t, log_alpha.exp(), (-(2 * log_alpha).expm1()).sqrt())

    @override
    def of(self, sigma: Float[Tensor, "*s"]) -> PathPoint:
        growth = 2 * (sigma**2).log1p()
        root = (self.beta_min**2 + self.beta_d * growth).sqrt()
        back = (growth / (root + self.beta_min)).clamp(max=1)
        alpha = (1 + sigma**2).rsqrt()
        return self._point(1 - back, back, alpha, sigma * alpha)

    def _point(self, t: Tensor, back: Tensor, alpha: Tensor, std: Tensor) -> PathPoint:
        alpha_deriv = 0.5 * alpha * (back * self.beta_d + self.beta_min)
        return PathPoint(t, alpha, std, alpha_deriv, -alpha * alpha_deriv / std)


PATHS: Mapping[str, Path] = {"linear": Linear(), "gvp": GVP(), "vp": VP()}


def path_of(name: str) -> Path:
    """A path by its name.

    Raises:
        ConfigError: there is no such path.
    """
    if name not in PATHS:
        raise ConfigError(f"there is no path {name!r}; {nearest(name, PATHS)}")
    return PATHS[name]


def interval(path: str, prediction: str, *, training: bool) -> tuple[float, float]:
    """The times (first, last) that are used, where a formula has a pole at one of the ends.

    The whole of [0, 1] for velocities on the linear and GVP paths; 1e-3 off both ends for other
    predictions there; on the VP path only the data end is cut, by 1e-5 in training and 1e-3 in
    sampling. Source: the official code's defaults.
    """
    if path == "vp":
        return 0.0, 1 - (1e-5 if training else 1e-3)
    margin = 0.0 if prediction == "velocity" else 1e-3
    return margin, 1 - margin


@dataclass(frozen=True)
class Flow(Preconditioning):
    """A model that was trained by flow matching.

    The network is given ``x_t`` and t. Choose it for SiT, or to train with straight paths.

    Attributes:
        path: ``linear``, ``gvp`` or ``vp``.
        prediction: what the network's output is: the ``velocity`` dx_t/dt, the ``noise`` x0, or the
            ``score`` -x0 / std.
    """

    name: ClassVar[str] = "flow"
    exact: ClassVar[bool] = True  # x is of size sigma: float32 would lose x1 where that is large

    path: str = "linear"
    prediction: str = "velocity"

    def __post_init__(self) -> None:
        path_of(self.path)
        check_option("flow matching", "prediction", self.prediction, PREDICTIONS)

    @cached_property
    def sigma_min(self) -> float:
        """The noise level of the last time that is sampled; 0 for velocities, VP excepted."""
        return self._sigma(interval(self.path, self.prediction, training=False)[1])

    @cached_property
    def sigma_max(self) -> float:
        """That of the first time; `LARGEST` where it is pure noise."""
        return self._sigma(interval(self.path, self.prediction, training=False)[0])

    def _sigma(self, t: float) -> float:
        return float(PATHS[self.path].sigma(torch.tensor(t, dtype=torch.float64)))

    def coefficients(self, sigma: Float[Tensor, "*s"]) -> Coefficients:
        """``x1 = (std v - std' x_t) / (alpha' std - alpha std')``, and the like for the others."""
        point = PATHS[self.path].of(sigma)
        c_skip, c_out = torch.ones_like(sigma), -sigma
        if self.prediction == "velocity":
            c_skip = -point.std_deriv * point.alpha / point.speed
            c_out = point.std / point.speed
        elif self.prediction == "score":
            c_out = sigma * point.std
        return Coefficients(c_skip=c_skip, c_out=c_out, c_in=point.alpha, c_noise=point.t)

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The path's time, turned round."""
        return (1 - PATHS[self.path].t(sigma)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class FlowLoss(WeightedLoss):
    """Squared error of the velocity at uniform times, or of the noise.

    It trains a `Flow` of the same path and prediction: for another one, the weights of the errors
    of x1 may have no bound where the path ends.

    Attributes:
        path: ``linear``, ``gvp`` or ``vp``.
        prediction: whose error is squared: the ``velocity``, the ``noise``, or the ``score`` (times
            std, which is that of the noise).
        weighting: of errors of the noise: ``none``; ``velocity`` makes them those of the velocity;
            ``likelihood`` bounds the likelihood of the stochastic sampler.

    Source: arXiv:2401.08740, Eq. 4, 7 and 10 and their weights in the official code.
    """

    normal_levels: ClassVar[bool] = False

    path: str = "linear"
    prediction: str = "velocity"
    weighting: str = "none"

    def __post_init__(self) -> None:
        path_of(self.path)
        check_option("flow matching", "prediction", self.prediction, PREDICTIONS)
        check_option("flow matching", "weighting", self.weighting, WEIGHTINGS)
        if self.prediction == "velocity" and self.weighting != "none":
            raise ConfigError(
                f"weighting: {self.weighting} weighs errors of the noise; with prediction: velocity"
                " leave it out"
            )

    def __call__(
        self,
        denoiser: Denoiser,
        images: Float[Tensor, "B C H W"],
        condition: Condition,
        draws: LossDraws,
    ) -> LossTerms:
        """See `DenoisingLoss.__call__`.

        Raises:
            ConfigError: the model is not a `Flow` of this path and prediction.
        """
        assert isinstance(denoiser, PreconditionedDenoiser)
        trained = Flow(path=self.path, prediction=self.prediction)
        if denoiser.preconditioning != trained:
            raise ConfigError(
                f"the flow loss trains preconditioning {trained.to_config()}, but the model has "
                f"{denoiser.preconditioning.to_config()}; make them agree or take another loss"
            )
        return super().__call__(denoiser, images, condition, draws)

    def sigma(self, level: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The noise levels of times spread over the path's `interval`.

        They are float64 (where the device has it), and so is all that the loss makes of them: near
        either end of the path float32 would lose the error in its rounding.
        """
        first, last = interval(self.path, self.prediction, training=True)
        t = first + level * (last - first)
        return PATHS[self.path].sigma(t.to(compute.widest(t.device)))

    def weight(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """What turns squared errors of x1 into those of the prediction, times the weighting."""
        point = PATHS[self.path].of(sigma)
        if self.prediction == "velocity":
            return (point.speed / point.std) ** 2
        # SiT's drift of the variance, over std: alpha' std / alpha - std'.
        drift = point.speed / point.alpha
        weighting: dict[str, Tensor | float] = {
            "none": 1.0,
            "velocity": drift**2,
            "likelihood": drift / point.std,
        }
        return weighting[self.weighting] / sigma**2
