"""Multistep solvers: second order and more for one network evaluation a step.

In ``lam = -ln(sigma)`` the probability-flow ODE is linear but for the denoised estimate:
``x_next = r x + (1 - r) x0`` with ``r = sigma_next / sigma`` would be exact, were x0 constant.
These solvers let x0 change along a line (or parabola) through the estimates of earlier steps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import Noise
from genlab.samplers.base import SolverStep
from genlab.samplers.solvers.churn import Leg, announce, denoise, plan, refuse_repeats

State = Float[Tensor, "B C H W"]


@dataclass(frozen=True, kw_only=True)
class _Estimate:
    """A denoised estimate and the noise level that it was made at."""

    x0: State
    sigma: float

    @property
    def lam(self) -> float:
        return -math.log(self.sigma)


@dataclass(frozen=True, kw_only=True)
class _Multistep:
    """The loop of these solvers.

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

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B C H W"],
        sigmas: Float64[Tensor, " levels"],
        condition: Condition,
        noise: Noise,
    ) -> Iterator[SolverStep]:
        """Run; see `genlab.samplers.base.Solver`.

        Raises:
            ConfigError: two noise levels are the same.
        """
        refuse_repeats(self.name, sigmas)
        before: _Estimate | None = None
        now: _Estimate | None = None
        begun = x
        legs = plan(sigmas.tolist(), sigmas[:-1].tolist())
        for leg in announce(denoiser, legs, noise):
            x0 = denoise(denoiser, x, leg.sigma, condition)
            at_end = _Estimate(x0=x0, sigma=leg.sigma)
            if now is not None:
                x = self._arrive(x, begun, before, now, at_end)
            before, now, begun = now, at_end, x
            ahead = x0 + 0.5 * _change(before, now, leg.sigma_next)
            x = self._leave(x, ahead, leg, noise)
            yield leg.done(x, x0)

    def _arrive(
        self, x: State, begun: State, before: _Estimate | None, now: _Estimate, end: _Estimate
    ) -> State:
        """Where the step from ``begun`` at ``now`` leads, with the estimate at its end known."""
        return x

    def _leave(self, x: State, ahead: State, leg: Leg, noise: Noise) -> State:
        """Take a step, with ``ahead`` for the estimate."""
        r = leg.sigma_next / leg.sigma
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

    def _leave(self, x: State, ahead: State, leg: Leg, noise: Noise) -> State:
        if not self.sde:
            return super()._leave(x, ahead, leg, noise)
        r = leg.sigma_next / leg.sigma
        fresh = noise.randn(x.shape[1:], torch.float64).to(x.dtype)
        return r**2 * x + (1 - r**2) * ahead + leg.sigma_next * math.sqrt(1 - r**2) * fresh


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

    def _arrive(
        self, x: State, begun: State, before: _Estimate | None, now: _Estimate, end: _Estimate
    ) -> State:
        """The step again, with weights that are exact for estimates on a line.

        Where there is an earlier estimate, they are exact for a parabola in lam.
        """
        h = end.lam - now.lam
        r = end.sigma / now.sigma
        predicted = r * begun + (1 - r) * now.x0
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
