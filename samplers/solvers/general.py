"""EDM's general sampler: any sigma(t) and s(t) of its Table 1, first or second order."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from genlab.choices import check_option
from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.diffusion.preconditioning import vp_sigma, vp_t
from genlab.errors import ConfigError
from genlab.samplers.base import Grid, StepResult
from genlab.samplers.schedules.vp import vp_betas
from genlab.samplers.solvers.churn import Churn, added_std

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


class TimeFrame(NamedTuple):
    """A time ``t`` in which the ODE is stepped; noise grows with it from 0.

    Attributes:
        sigma: noise level of a time.
        sigma_deriv: its derivative, for t > 0.
        t: time of a noise level.
    """

    sigma: Callable[[float], float]
    sigma_deriv: Callable[[float], float]
    t: Callable[[float], float]


LINEAR = TimeFrame(lambda t: t, lambda t: 1.0, lambda sigma: sigma)
"""``sigma(t) = t``: EDM's own."""

VE = TimeFrame(math.sqrt, lambda t: 0.5 / math.sqrt(t), lambda sigma: sigma**2)
"""``sigma(t) = sqrt(t)``: time is the variance."""


def vp_frame(beta_d: float, beta_min: float) -> TimeFrame:
    """``sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``: Song et al.'s continuous DDPM."""

    def sigma_at(t: float) -> float:
        return float(vp_sigma(_number(t), beta_d, beta_min))

    def sigma_deriv(t: float) -> float:
        sigma = sigma_at(t)
        return 0.5 * (beta_min + beta_d * t) * (sigma + 1 / sigma)

    def t_of(sigma: float) -> float:
        # The formula has another root at 0 where beta_min is below 0.
        return float(vp_t(_number(sigma), beta_d, beta_min)) if sigma else 0.0

    return TimeFrame(sigma_at, sigma_deriv, t_of)


@dataclass(frozen=True, kw_only=True)
class General(Churn):
    """The ODE stepped in a time and a scale of choice, as VP, VE, iDDPM and EDM models once were.

    It is also known as ``two-stage``, after the family of Runge-Kutta methods that ``alpha`` goes
    through.

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
        alpha: where the second slope is taken, as a share of the step in t, > 0: 1 is Heun, 2/3
            Ralston, 1/2 the midpoint; above 1 it lies beyond the end of the step and must still be
            at positive noise. 1 alone asks at the noise levels of the schedule and nowhere else, as
            models with discrete ones need.
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
        check_option("the general solver", "solver", self.solver, METHODS)
        check_option("the general solver", "schedule", self.schedule, SCHEDULES)
        check_option("the general solver", "scaling", self.scaling, SCALINGS)
        if not 0 < self.alpha < math.inf:
            raise ConfigError(
                "a two-stage solver needs alpha > 0 (1 = Heun, 2/3 = Ralston, 1/2 = midpoint), got"
                f" {self.alpha}"
            )
        if self.solver == "euler" and self.alpha != 1:
            raise ConfigError(
                f"alpha = {self.alpha:g} has no effect with solver: euler; remove it, or use heun"
            )
        if not 0 < self.epsilon_s < 1:
            raise ConfigError(f"the general solver needs 0 < epsilon_s < 1, got {self.epsilon_s}")

    @property
    def on_grid(self) -> bool:  # type: ignore[override]  # here it depends on an option
        """Only a second slope at the end of the step keeps to the levels of the run."""
        return self.alpha == 1

    @override
    def nfe(self, num_steps: int) -> int:
        return num_steps if self.solver == "euler" else 2 * num_steps - 1

    def frame(self, grid: Grid) -> TimeFrame:
        """The time of a run over these noise levels."""
        if self.schedule == "linear":
            return LINEAR
        if self.schedule == "ve":
            return VE
        low, high = grid.sigma_range
        return vp_frame(
            *vp_betas(
                low if self.sigma_min is None else self.sigma_min,
                high if self.sigma_max is None else self.sigma_max,
                self.epsilon_s,
            )
        )

    def times(self, grid: Grid) -> Float64[Tensor, " levels"]:
        """The times of a run's noise levels in this solver's own schedule."""
        frame = self.frame(grid)
        return torch.tensor([frame.t(sigma) for sigma in grid.sigmas.tolist()], dtype=torch.float64)

    def begin(self, grid: Grid) -> "_Scaled":
        """The time of the run.

        Raises:
            ConfigError: no variance-preserving time fits the range; or the second slope would lie
                at no noise, or where the model knows none.
        """
        frame = self.frame(grid)
        if self.solver == "heun" and self.alpha != 1:
            self._check_between(frame, grid)
        return _Scaled(frame=frame)

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: "_Scaled"
    ) -> StepResult:
        """The state inside is ``s(t) x``."""
        frame = memory.frame
        now, start, end = (
            self._point(frame, frame.t(sigma))
            for sigma in (step.level, step.sigma, step.sigma_next)
        )
        scaled = x * now.s if memory.scaled is None or memory.x is not x else memory.scaled
        x_hat = self._raise(scaled, step, now, start)
        h = end.t - start.t
        x0 = denoiser(x_hat / start.s, start.sigma)
        d = _slope(x_hat, x0, start)
        scaled = x_hat + h * d
        if self.solver == "heun" and step.sigma_next > 0:
            middle = self._point(frame, start.t + self.alpha * h)
            x_prime = x_hat + self.alpha * h * d
            x0 = denoiser(x_prime / middle.s, middle.sigma)
            d_prime = _slope(x_prime, x0, middle)
            weight = 1 / (2 * self.alpha)
            scaled = x_hat + h * ((1 - weight) * d + weight * d_prime)
        x = scaled / end.s
        return StepResult(x=x, x0=x0, memory=_Scaled(frame=frame, x=x, scaled=scaled))

    def _point(self, frame: TimeFrame, t: float) -> Point:
        sigma = frame.sigma(t)
        sigma_deriv = frame.sigma_deriv(t) if t > 0 else math.nan  # it is never evaluated at 0
        if self.scaling == "none":
            return Point(t, sigma, sigma_deriv, 1.0, 0.0)
        s = 1 / math.sqrt(1 + sigma**2)
        return Point(t, sigma, sigma_deriv, s, -sigma * sigma_deriv * s**3)

    def _raise(self, scaled: State, step: StepInfo, now: Point, start: Point) -> State:
        """Churn in the scaled frame."""
        x_hat = (start.s / now.s) * scaled
        fresh = self.draw(scaled, step)
        if fresh is None:
            return x_hat
        return x_hat + added_std(now.sigma, start.sigma) * start.s * fresh

    def _check_between(self, frame: TimeFrame, grid: Grid) -> None:
        ends = zip(self.starts(grid), grid.sigmas[1:].tolist(), strict=True)
        times = [(frame.t(start), frame.t(end)) for start, end in ends if end > 0]
        middles = [start + self.alpha * (end - start) for start, end in times]
        if not all(t > 0 and frame.sigma(t) > 0 for t in middles):
            raise ConfigError(
                f"alpha = {self.alpha:g} reaches past zero noise in the steps of this schedule; use"
                " an alpha nearer to 1, more steps, or a larger sigma_min"
            )
        levels = torch.tensor([frame.sigma(t) for t in middles], dtype=torch.float64)
        if not torch.equal(grid.noise_levels.round_sigma(levels), levels):
            raise ConfigError(
                f"alpha = {self.alpha:g} asks for noise levels between those of the schedule, and"
                " this model knows discrete ones only; use alpha = 1 or the heun solver"
            )


@dataclass(frozen=True, kw_only=True)
class _Scaled:
    """The time of a run, and the last state as it was inside.

    Attributes:
        frame: the time.
        x: the state that the last step returned; another one means that a hook has replaced it.
        scaled: the same, times s(t). Going to and fro would round it twice.
    """

    frame: TimeFrame
    x: State | None = None
    scaled: State | None = None


def _slope(x: Tensor, x0: Tensor, at: Point) -> Float[Tensor, "B C H W"]:
    """dx/dt at a point (EDM's Eq. 4 with the score written through the denoiser)."""
    growth = at.sigma_deriv / at.sigma
    return (growth + at.s_deriv / at.s) * x - growth * at.s * x0


def _number(value: float) -> Float64[Tensor, ""]:
    return torch.tensor(value, dtype=torch.float64)
