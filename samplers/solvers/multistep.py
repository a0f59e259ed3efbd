"""Multistep solvers: second order and more for one network evaluation a step.

In ``lam = -ln(sigma)`` the probability-flow ODE is linear but for the denoised estimate:
``x_next = r x + (1 - r) x0`` with ``r = sigma_next / sigma`` would be exact, were x0 constant.
These solvers let x0 change along a line (or parabola) through the estimates of earlier steps.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.samplers.base import Grid, Solver, StepResult
from genlab.samplers.solvers.churn import fresh_noise, refuse_repeats


@dataclass(frozen=True, kw_only=True)
class _Estimate:
    """A denoised estimate and the noise level that it was made at."""

    x0: State
    sigma: float

    @property
    def lam(self) -> float:
        return -math.log(self.sigma)


@dataclass(frozen=True, kw_only=True)
class _History:
    """What these solvers remember of a run.

    Attributes:
        x: the state that the last step returned; another one means that a hook has replaced it.
        begun: the state that the last step began with.
        now: the estimate that the last step was made with.
        before: that of the step before it.
    """

    x: State
    begun: State
    now: _Estimate
    before: _Estimate | None


@dataclass(frozen=True, kw_only=True)
class _Multistep(Solver):
    """What these solvers share.

    Attributes:
        name: in `genlab.samplers.base.SOLVERS`.
        unit_start: whether to start from unit noise in the scaled frame, as diffusers does, rather
            than from the first noise level: a factor of ``sqrt(1 + 1 / sigma^2)``.
    """

    name: ClassVar[str]

    unit_start: bool = False

    def start_std(self, sigma: float) -> float:
        """The noise level, or that of unit noise in the scaled frame."""
        return math.hypot(1.0, sigma) if self.unit_start else sigma

    def begin(self, grid: Grid) -> None:
        """Nothing is remembered yet.

        Raises:
            ConfigError: two noise levels are the same.
        """
        refuse_repeats(self.name, grid.sigmas)

    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: _History | None
    ) -> StepResult:
        """See `Solver.step`."""
        now = _Estimate(x0=denoiser(x, step.level), sigma=step.level)
        before = None if memory is None else memory.now
        if memory is not None and memory.x is x:
            x = self._arrive(x, memory, now)
        ahead = now.x0 + 0.5 * _change(before, now, step.sigma_next)
        x_next = self._leave(x, ahead, step)
        history = _History(x=x_next, begun=x, now=now, before=before)
        return StepResult(x=x_next, x0=now.x0, memory=history)

    def _arrive(self, x: State, history: _History, end: _Estimate) -> State:
        """Where the last step leads, now that the estimate at its end is known."""
        return x

    def _leave(self, x: State, ahead: State, step: StepInfo) -> State:
        """Take a step, with ``ahead`` for the estimate."""
        r = step.sigma_next / step.level
        return r * x + (1 - r) * ahead


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(_Multistep):
    """DPM-Solver++(2M), of the ODE or, with ``sde``, of a stochastic equation with the same images.

    Choose it with 10 to 30 steps, with guidance too: it is steadier than `Heun` there and takes
    half the evaluations a step. The first and the last step are of first order.

    Order 2 (without ``sde``). Costs one network evaluation a step.

    Attributes:
        sde: whether to remove more noise in each step and add fresh noise.

    Source: Lu et al. (arXiv:2211.01095), Algorithm 2 and, for ``sde``, Appendix B, with the
    difference quotient of the midpoint rule; as diffusers' DPMSolverMultistepScheduler.
    """

    name: ClassVar[str] = "dpmpp-2m"
    order: ClassVar[int] = 2

    sde: bool = False

    def _leave(self, x: State, ahead: State, step: StepInfo) -> State:
        if not self.sde:
            return super()._leave(x, ahead, step)
        r = step.sigma_next / step.level
        added = step.sigma_next * math.sqrt(1 - r**2)
        return r**2 * x + (1 - r**2) * ahead + added * fresh_noise(x, step)


@dataclass(frozen=True, kw_only=True)
class UniPC(_Multistep):
    """UniPC: `DPMSolverPP2M` whose every step is corrected once its end has been denoised.

    Choose it for the fewest steps, 5 to 15; the correction costs nothing, because the next step
    asks for the same estimate.

    Order 3: second of its own, one more from the correction. Costs one network evaluation a step.

    Source: Zhao et al. (arXiv:2302.04867), Algorithms 5 to 8 with p = 2 and B(h) = e^h - 1, data
    prediction; as diffusers' UniPCMultistepScheduler.
    """

    name: ClassVar[str] = "unipc"
    order: ClassVar[int] = 3

    def _arrive(self, x: State, history: _History, end: _Estimate) -> State:
        """The step again, with weights that are exact for estimates on a line.

        Where there is an earlier estimate, they are exact for a parabola in lam.
        """
        now, before = history.now, history.before
        h = end.lam - now.lam
        r = end.sigma / now.sigma
        predicted = r * history.begun + (1 - r) * now.x0
        if before is None:
            return predicted + (1 - r) * 0.5 * (end.x0 - now.x0)
        # The integrals of e^-h phi_1 and phi_2 that a step has to weigh, over B(h) = e^-h - 1.
        phi_2 = (r - 1) / -h - 1
        first = phi_2 / (r - 1)
        second = (phi_2 / -h - 0.5) * 2 / (r - 1)
        place = (before.lam - now.lam) / h  # of the earlier estimate, in steps; negative
        weight_end = (second - place * first) / (1 - place)
        weight_before = first - weight_end
        change = weight_before * (before.x0 - now.x0) / place + weight_end * (end.x0 - now.x0)
        return predicted + (1 - r) * change


def _change(before: _Estimate | None, now: _Estimate, sigma_next: float) -> State | float:
    """How much x0 changes over the step to come if it goes on as it did; 0 where nobody knows."""
    if before is None or sigma_next == 0:
        return 0.0
    h, h_before = -math.log(sigma_next) - now.lam, now.lam - before.lam
    return (h / h_before) * (now.x0 - before.x0)
