"""EDM's general sampler: any sigma(t) and s(t) of its Table 1, first or second order."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import Noise
from genlab.diffusion.preconditioning import vp_sigma, vp_t
from genlab.errors import ConfigError, nearest
from genlab.samplers.base import SolverStep
from genlab.samplers.schedules import vp_betas
from genlab.samplers.solvers.churn import Churn, Leg, added_std, announce, denoise
from genlab.samplers.solvers.two_stage import check_alpha, check_positive

SCHEDULES = ("linear", "ve", "vp")
SCALINGS = ("none", "vp")
METHODS = ("euler", "heun")


class Point(NamedTuple):
    """One moment of the run: time, noise level and scale, with their time derivatives."""

    t: float
    sigma: float
    sigma_deriv: float
    s: float
    s_deriv: float


class TimeFrame(ABC):
    """A time ``t`` in which the ODE is stepped: sigma(t) and its inverse, increasing from 0."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """Noise level at time ``t``."""

    @abstractmethod
    def sigma_deriv(self, t: float) -> float:
        """Its derivative, for t > 0."""

    @abstractmethod
    def t(self, sigma: float) -> float:
        """The time of a noise level."""


class LinearFrame(TimeFrame):
    """``sigma(t) = t``: EDM's own."""

    def sigma(self, t: float) -> float:
        """See `TimeFrame`."""
        return t

    def sigma_deriv(self, t: float) -> float:
        """See `TimeFrame`."""
        return 1.0

    def t(self, sigma: float) -> float:
        """See `TimeFrame`."""
        return sigma


class VEFrame(TimeFrame):
    """``sigma(t) = sqrt(t)``: time is the variance."""

    def sigma(self, t: float) -> float:
        """See `TimeFrame`."""
        return math.sqrt(t)

    def sigma_deriv(self, t: float) -> float:
        """See `TimeFrame`."""
        return 0.5 / math.sqrt(t)

    def t(self, sigma: float) -> float:
        """See `TimeFrame`."""
        return sigma**2


class VPFrame(TimeFrame):
    """``sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``: Song et al.'s continuous DDPM."""

    def __init__(self, beta_d: float, beta_min: float) -> None:
        self.beta_d = beta_d
        self.beta_min = beta_min

    def sigma(self, t: float) -> float:
        """See `TimeFrame`."""
        return float(vp_sigma(_number(t), self.beta_d, self.beta_min))

    def sigma_deriv(self, t: float) -> float:
        """See `TimeFrame`."""
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def t(self, sigma: float) -> float:
        """See `TimeFrame`."""
        if sigma == 0:
            return 0.0  # the formula has another root there where beta_min is below 0
        return float(vp_t(_number(sigma), self.beta_d, self.beta_min))


@dataclass(frozen=True, kw_only=True)
class General(Churn):
    """The ODE stepped in a time and a scale of choice, as VP, VE, iDDPM and EDM models once were.

    The trajectory is the same in every frame; what differs is the error of each step. Choose it to
    reproduce a published sampler or an ablation: the ``vp`` schedule, time and scaling are Song et
    al.'s VP sampler, ``ve`` with no scaling their VE sampler, and the ``iddpm`` schedule with
    ``euler`` is DDIM. For images `Heun` is as good as any; it is this solver's default setting.

    Order 2, or 1 with ``solver: euler``. Costs two network evaluations a step and one on the last
    (``heun``), or one a step (``euler``).

    Attributes:
        solver: ``heun`` (the two-stage rule with ``alpha``) or ``euler``.
        schedule: sigma(t): ``linear`` (t), ``ve`` (sqrt(t)) or ``vp``. Which noise levels are
            visited is the noise schedule's business, not this one's.
        scaling: s(t): ``none`` (1) or ``vp`` (1 / sqrt(1 + sigma^2)).
        alpha: where the second slope is taken, as a share of the step in t; see
            `genlab.samplers.solvers.two_stage.TwoStage`. With discrete noise levels keep 1: the
            model takes what lies between for its nearest level.
        epsilon_s: the time at which the ``vp`` schedule reaches the smallest noise level.
        sigma_min: smallest noise level of the range that the ``vp`` schedule's betas are made for;
            None takes it from the noise schedule.
        sigma_max: the largest one.

    Source: EDM (arXiv:2206.00364), Eq. 4, Table 1 and Algorithms 1 to 3; the betas and churn in
    any frame follow its official ablation sampler.
    """

    order: ClassVar[int] = 2

    solver: str = "heun"
    schedule: str = "linear"
    scaling: str = "none"
    alpha: float = 1.0
    epsilon_s: float = 1e-3
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, known in (("solver", METHODS), ("schedule", SCHEDULES), ("scaling", SCALINGS)):
            value = getattr(self, option)
            if value not in known:
                raise ConfigError(
                    f"the general solver has no {option} {value!r}; {nearest(value, known)}"
                )
        check_alpha(self.alpha)
        if self.solver == "euler" and self.alpha != 1:
            raise ConfigError(
                f"alpha = {self.alpha:g} has no effect with solver: euler; remove it, or use heun"
            )
        if not 0 < self.epsilon_s < 1:
            raise ConfigError(f"the general solver needs 0 < epsilon_s < 1, got {self.epsilon_s}")

    def with_range(self, sigma_min: float, sigma_max: float) -> "General":
        """The same solver for a run over this range; ends that are set already stay."""
        return replace(
            self,
            sigma_min=sigma_min if self.sigma_min is None else self.sigma_min,
            sigma_max=sigma_max if self.sigma_max is None else self.sigma_max,
        )

    def frame(self, sigmas: Float64[Tensor, " levels"]) -> TimeFrame:
        """The time of a run over these noise levels."""
        if self.schedule == "linear":
            return LinearFrame()
        if self.schedule == "ve":
            return VEFrame()
        levels = sigmas[sigmas > 0]
        low = float(levels.min()) if self.sigma_min is None else self.sigma_min
        high = float(levels.max()) if self.sigma_max is None else self.sigma_max
        return VPFrame(*vp_betas(low, high, self.epsilon_s))

    def times(self, sigmas: Float64[Tensor, " levels"]) -> Float64[Tensor, " levels"]:
        """The times of noise levels in this solver's own schedule."""
        frame = self.frame(sigmas)
        return torch.tensor([frame.t(sigma) for sigma in sigmas.tolist()], dtype=torch.float64)

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B C H W"],
        sigmas: Float64[Tensor, " levels"],
        condition: Condition,
        noise: Noise,
    ) -> Iterator[SolverStep]:
        """Run; see `genlab.samplers.base.Solver`. The state inside is ``s(t) x``.

        Raises:
            ConfigError: the second slope would lie at no noise.
        """
        frame = self.frame(sigmas)
        legs = self.legs(denoiser, sigmas)
        self._check_between(frame, legs)
        for leg in announce(denoiser, legs, noise):
            start, end = (self._point(frame, frame.t(v)) for v in (leg.sigma_hat, leg.sigma_next))
            x_hat = self._raise(frame, x, leg, start, noise)
            h = end.t - start.t
            x0 = denoise(denoiser, x_hat / start.s, start.sigma, condition)
            d = _slope(x_hat, x0, start)
            x = x_hat + h * d
            if self.solver == "heun" and leg.sigma_next > 0:
                middle = self._point(frame, start.t + self.alpha * h)
                x_prime = x_hat + self.alpha * h * d
                x0 = denoise(denoiser, x_prime / middle.s, middle.sigma, condition)
                d_prime = _slope(x_prime, x0, middle)
                weight = 1 / (2 * self.alpha)
                x = x_hat + h * ((1 - weight) * d + weight * d_prime)
            yield leg.done(x / end.s, x0)

    def _point(self, frame: TimeFrame, t: float) -> Point:
        sigma = frame.sigma(t)
        sigma_deriv = frame.sigma_deriv(t) if t > 0 else math.nan  # nobody asks for it at 0
        if self.scaling == "none":
            return Point(t, sigma, sigma_deriv, 1.0, 0.0)
        s = 1 / math.sqrt(1 + sigma**2)
        return Point(t, sigma, sigma_deriv, s, -sigma * sigma_deriv * s**3)

    def _raise(
        self, frame: TimeFrame, x: Tensor, leg: Leg, start: Point, noise: Noise
    ) -> Float[Tensor, "B C H W"]:
        """Churn in the scaled frame; on the first step it also brings ``x`` into that frame."""
        now = self._point(frame, frame.t(leg.sigma))
        if leg.index == 0:
            x = x * now.s
        x_hat = (start.s / now.s) * x
        fresh = self.draw(x, noise)
        if fresh is None:
            return x_hat
        return x_hat + added_std(now.sigma, start.sigma) * start.s * fresh

    def _check_between(self, frame: TimeFrame, legs: Sequence[Leg]) -> None:
        ends = [(frame.t(leg.sigma_hat), frame.t(leg.sigma_next)) for leg in legs]
        times = [t + self.alpha * (end - t) for t, end in ends if end > 0]
        check_positive([frame.sigma(t) if t > 0 else 0.0 for t in times], self.alpha)


def _slope(x: Tensor, x0: Tensor, at: Point) -> Float[Tensor, "B C H W"]:
    """dx/dt at a point (EDM's Eq. 4 with the score written through the denoiser)."""
    growth = at.sigma_deriv / at.sigma
    return (growth + at.s_deriv / at.s) * x - growth * at.s * x0


def _number(value: float) -> Float64[Tensor, ""]:
    return torch.tensor(value, dtype=torch.float64)
