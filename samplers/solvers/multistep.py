"""Multistep solvers in ``lam = -ln(sigma)``: high order for one network evaluation a step.

In lam the probability-flow ODE is linear but for what the model predicts. With h the length of a
step and a constant estimate x0, ``x_next = r x + (1 - r) x0`` with ``r = e^-h`` is exact; with a
constant noise eps it is ``x_next = x - sigma_next (e^h - 1) eps``. These solvers let the prediction
change along a polynomial through those of earlier steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from genlab.choices import check_option
from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.errors import ConfigError
from genlab.samplers.base import Grid, Solver, StepResult
from genlab.samplers.solvers.churn import refuse_repeats
from genlab.samplers.solvers.draws import Draws, check_noise

PREDICTIONS = ("x0", "eps")
CORRECTIONS = ("midpoint", "heun")
VARIANTS = ("bh1", "bh2")


@dataclass(frozen=True, kw_only=True)
class _Estimate:
    """What the model predicted (x0 or eps), and the noise level at which it did."""

    value: State
    sigma: float

    @property
    def lam(self) -> float:
        return -math.log(self.sigma)


@dataclass(frozen=True, kw_only=True)
class _History:
    """The memory of multistep solvers.

    Attributes:
        draws: the noise of the run; None where there is none.
        x: the state that the last step returned; another one means that a hook has replaced it.
        begun: the state that the last step began with.
        estimates: of the steps so far, the newest first.
        order: of the last step.
    """

    draws: Draws | None = None
    x: State | None = None
    begun: State | None = None
    estimates: tuple[_Estimate, ...] = ()
    order: int = 0


@dataclass(frozen=True, kw_only=True)
class _Multistep(Solver):
    """The base of multistep solvers.

    Attributes:
        name: in `genlab.samplers.base.SOLVERS`.
        max_order: order of a step once there are so many estimates, 1 to 3.
        prediction: what is taken for a polynomial: ``x0`` is steadier with guidance, ``eps`` is the
            older form.
        lower_order_final: whether the last steps before the one to 0 go down to order 1.
        unit_start: whether to start from unit noise in the scaled frame, as diffusers does, rather
            than from the first noise level: a factor of ``sqrt(1 + 1 / sigma^2)``.
    """

    name: ClassVar[str]

    max_order: int = 2
    prediction: str = "x0"
    lower_order_final: bool = False
    unit_start: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_order <= 3:
            raise ConfigError(
                f"the {self.name} solver needs 1 <= max_order <= 3, got {self.max_order}"
            )
        check_option(f"the {self.name} solver", "prediction", self.prediction, PREDICTIONS)

    def start_std(self, sigma: float) -> float:
        """The noise level, or that of unit noise in the scaled frame."""
        return math.hypot(1.0, sigma) if self.unit_start else sigma

    def begin(self, grid: Grid) -> _History:
        """An empty history.

        Raises:
            ConfigError: two noise levels are the same.
        """
        refuse_repeats(self.name, grid.sigmas)
        return _History()

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: _History
    ) -> StepResult:
        x0 = denoiser(x, step.level)
        value = x0 if self.prediction == "x0" else (x - x0) / step.level
        now = _Estimate(value=value, sigma=step.level)
        if memory.x is x:
            x = self._correct(x, memory, now)
        estimates = (now, *memory.estimates)[: self.max_order]
        order = self._order(step, len(estimates))
        # The step to 0 has no length in lam: it leads to the estimate itself.
        x_next = x0
        if step.sigma_next > 0:
            x_next = self._leave(x, estimates[:order], step, memory.draws)
        history = _History(draws=memory.draws, x=x_next, begun=x, estimates=estimates, order=order)
        return StepResult(x=x_next, x0=x0, memory=history)

    def _order(self, step: StepInfo, highest: int) -> int:
        left = step.num_steps - 1 - step.index if self.lower_order_final else highest
        return max(1, min(highest, left))

    def _correct(self, x: State, history: _History, end: _Estimate) -> State:
        """Where the last step leads, now that the prediction at its end is known."""
        return x

    def _leave(
        self, x: State, estimates: Sequence[_Estimate], step: StepInfo, draws: Draws | None
    ) -> State:
        """Take a step of as many orders as there are estimates."""
        raise AssertionError


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP(_Multistep):
    """DPM-Solver++, of the ODE or, with ``sde``, of a stochastic equation with the same images.

    Choose it with 10 to 30 steps, with guidance too: it is steadier than `Heun` there and takes
    half the evaluations a step. The first and the last step are of first order. It is known as
    ``dpmpp-2m``; with ``prediction: eps`` it is DPM-Solver of the first kind.

    Order 2 (without ``sde``), also with ``max_order: 3``, because of its first step. Costs one
    network evaluation a step.

    Attributes:
        max_order: order of a step once there are so many estimates, 1 to 3.
        sde: whether to remove more noise in each step and add fresh noise.
        eta: how much of that, with ``sde``; 0 is the ODE.
        s_noise: standard deviation of the fresh noise.
        noise: ``independent`` draws, or ``brownian``: pictures that more steps hardly change.
        correction: the form of a step of order 2: ``midpoint``, or ``heun``, which weighs the
            change of the estimate exactly.

    Source: Lu et al. (arXiv:2211.01095), Algorithm 2 and, for ``sde``, Appendix B; diffusers'
    DPMSolverMultistepScheduler; k-diffusion's sample_dpmpp_2m_sde and sample_dpmpp_3m_sde.
    """

    name: ClassVar[str] = "dpmpp"
    order: ClassVar[int] = 2

    sde: bool = False
    eta: float = 1.0
    s_noise: float = 1.0
    noise: str = "independent"
    correction: str = "midpoint"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(f"the {self.name} solver", "correction", self.correction, CORRECTIONS)
        check_noise(self.name, self.noise)
        if not (0 <= self.eta < math.inf and 0 <= self.s_noise < math.inf):
            raise ConfigError(
                f"the dpmpp solver needs eta >= 0 and s_noise >= 0, got {self.eta} and "
                f"{self.s_noise}"
            )
        if self.sde and self.prediction != "x0":
            raise ConfigError("the dpmpp solver's sde needs prediction: x0")

    @override
    def draws(self) -> int:
        return int(self.sde and self.eta > 0)

    @override
    def begin(self, grid: Grid) -> _History:
        return replace(super().begin(grid), draws=Draws(self.noise, grid))

    def _leave(
        self, x: State, estimates: Sequence[_Estimate], step: StepInfo, draws: Draws | None
    ) -> State:
        h = math.log(step.level / step.sigma_next)
        eta = self.eta if self.sde else 0.0
        # The stochastic equation removes the noise of a step 1 + eta times as long.
        exact = _Exact(self.prediction, h * (1 + eta), step.sigma_next)
        x_next = exact.constant(x, estimates[0].value)
        if len(estimates) > 1:
            x_next = x_next + exact.scale * self._change(estimates, h, exact)
        if eta == 0 or draws is None:
            return x_next
        up = step.sigma_next * math.sqrt(-math.expm1(-2 * h * eta))
        fresh = draws.between(x, step, step.level, step.sigma_next)
        return x_next + up * self.s_noise * fresh

    def _change(self, estimates: Sequence[_Estimate], h: float, exact: "_Exact") -> State:
        """What the change of the prediction adds to a step."""
        slopes = _slopes(estimates, h)
        if len(slopes) == 1 and self.correction == "midpoint":
            return 0.5 * exact.phi_1 * slopes[0]
        phi_2 = 1 - exact.phi_1 / exact.z
        change = phi_2 * slopes[0]
        return change if len(slopes) == 1 else change - (phi_2 / exact.z - 0.5) * slopes[1]


@dataclass(frozen=True, kw_only=True)
class UniPC(_Multistep):
    """UniPC: a multistep step that is corrected once its end has been denoised.

    Choose it for the fewest steps, 5 to 15; the correction costs nothing, because the next step
    asks for the same estimate. What a step reports is the state before its correction.

    Order 3 with ``max_order: 2``: one more than a step's own, from the correction. Costs one
    network evaluation a step.

    Attributes:
        max_order: order of a step once there are so many estimates, 1 to 3.
        variant: ``bh2`` is B(h) = e^h - 1, ``bh1`` B(h) = h, which suits unguided models.

    Source: Zhao et al. (arXiv:2302.04867), Algorithms 5 to 8; diffusers' UniPCMultistepScheduler.
    """

    name: ClassVar[str] = "unipc"
    order: ClassVar[int] = 3

    variant: str = "bh2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(f"the {self.name} solver", "variant", self.variant, VARIANTS)

    def _leave(
        self, x: State, estimates: Sequence[_Estimate], step: StepInfo, draws: Draws | None
    ) -> State:
        exact = _Exact(self.prediction, math.log(step.level / step.sigma_next), step.sigma_next)
        x_next = exact.constant(x, estimates[0].value)
        if len(estimates) == 1:
            return x_next
        places, changes = _places(estimates, step.sigma_next)
        return x_next + self._weigh(places, changes, exact)

    def _correct(self, x: State, history: _History, end: _Estimate) -> State:
        """The step again, with weights that are exact for one order more."""
        assert history.begun is not None
        estimates = history.estimates[: history.order]
        now = estimates[0]
        exact = _Exact(self.prediction, end.lam - now.lam, end.sigma)
        places, changes = _places(estimates, end.sigma)
        at_end = exact.constant(history.begun, now.value)
        return at_end + self._weigh([*places, 1.0], [*changes, end.value - now.value], exact)

    def _weigh(self, places: Sequence[float], changes: Sequence[State], exact: "_Exact") -> State:
        """What changes of the prediction add, with weights that are exact for polynomials.

        Args:
            places: where each estimate was made, in steps from the start of this one.
            changes: its difference from that at the start, over the place.
            exact: the step.
        """
        B = exact.z if self.variant == "bh1" else exact.phi_1
        weights = [0.5]  # for a single change the paper takes the half, which is as good
        if len(places) > 1:
            powers = np.vander(places, increasing=True).T
            weights = np.linalg.solve(powers, exact.moments(len(places), B)).tolist()
        weighed = [weight * change for weight, change in zip(weights, changes, strict=True)]
        return exact.scale * B * torch.stack(weighed).sum(0)


class _Exact:
    """A step of length h in lam that is exact for a constant prediction.

    ``x_next = kept x + scale phi_1 prediction``, where ``phi_1 = 1 - e^-z`` and z is h for x0 and
    -h for eps.
    """

    def __init__(self, prediction: str, h: float, sigma_next: float) -> None:
        of_x0 = prediction == "x0"
        self.z = h if of_x0 else -h
        self.kept = math.exp(-h) if of_x0 else 1.0
        self.scale = 1.0 if of_x0 else sigma_next
        self.phi_1 = -math.expm1(-self.z)

    def constant(self, x: State, value: State) -> State:
        """Where the step leads with the prediction as it is."""
        return self.kept * x + self.scale * self.phi_1 * value

    def moments(self, count: int, B: float) -> list[float]:
        """What weights of 1, s, s^2, ... have to sum to, in units of ``B``."""
        psi, moments = self.phi_1 / self.z - 1, []
        for k in range(1, count + 1):
            moments.append(-psi * math.factorial(k) / B)
            psi = -psi / self.z - 1 / math.factorial(k + 1)
        return moments


def _places(estimates: Sequence[_Estimate], sigma_next: float) -> tuple[list[float], list[State]]:
    """Places and changes for `UniPC._weigh`, of all estimates but the newest."""
    now = estimates[0]
    h = -math.log(sigma_next) - now.lam
    places = [(each.lam - now.lam) / h for each in estimates[1:]]
    changes = [
        (each.value - now.value) / place for each, place in zip(estimates[1:], places, strict=True)
    ]
    return places, changes


def _slopes(estimates: Sequence[_Estimate], h: float) -> list[State]:
    """First and, from three estimates, second derivative of the prediction, over steps of h."""
    now, before = estimates[:2]
    r0 = (now.lam - before.lam) / h
    first = (now.value - before.value) / r0
    if len(estimates) == 2:
        return [first]
    last = estimates[2]
    r1 = (before.lam - last.lam) / h
    earlier = (before.value - last.value) / r1
    second = (first - earlier) / (r0 + r1)
    return [first + r0 * second, second]
