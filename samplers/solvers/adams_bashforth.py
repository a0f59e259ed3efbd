"""Adams-Bashforth methods: one evaluation a step, and the slopes of the steps before."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.diffusion.preconditioning import vp_sigma, vp_t
from genlab.errors import ConfigError
from genlab.samplers.base import Grid, Solver, StepResult
from genlab.samplers.schedules.vp import vp_betas
from genlab.samplers.solvers.churn import refuse_repeats


class Slope(NamedTuple):
    """``dx/dsigma`` and the noise level that it was taken at."""

    value: State
    sigma: float


Slopes = tuple[Slope, ...]
"""The newest first."""


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(Solver):
    """A polynomial through the last slopes, integrated over the step: LMS, the "linear multistep".

    Choose it for few evaluations without guidance; strong guidance wants `UniPC`. It is DEIS in its
    ``rhoab`` form.

    Order 2 as built: a run begins with an Euler step, whose error is of second order; with three or
    four slopes the measured order lies between 2.5 and 3. Costs one network evaluation a step.

    Attributes:
        max_order: slopes that are used once there are so many, 1 to 4; 1 is `Euler`.
        full_last_step: whether the last step is one of the method, as in k-diffusion. Otherwise it
            leads to the denoised estimate, as with other solvers.

    Source: Zhang and Chen (arXiv:2204.13902), Eq. 15 in rho; k-diffusion's sample_lms.
    """

    name: ClassVar[str] = "lms"
    order: ClassVar[int] = 2

    max_order: int = 2
    full_last_step: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_order <= 4:
            raise ConfigError(
                f"the {self.name} solver needs 1 <= max_order <= 4, got {self.max_order}"
            )

    def begin(self, grid: Grid) -> Slopes:
        """No slopes yet.

        Raises:
            ConfigError: two noise levels are the same.
        """
        refuse_repeats(self.name, grid.sigmas)
        return ()

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Slopes
    ) -> StepResult:
        x0 = denoiser(x, step.level)
        newest = Slope((x - x0) / step.level, step.level)
        slopes = (newest, *memory)[: self.max_order]
        if step.sigma_next == 0 and not self.full_last_step:
            return StepResult(x=x0, x0=x0, memory=slopes)
        weights = self.weights([slope.sigma for slope in slopes], step.sigma_next)
        for slope, weight in zip(slopes, weights, strict=True):
            x = x + weight * slope.value
        return StepResult(x=x, x0=x0, memory=slopes)

    def weights(self, sigmas: Sequence[float], sigma_next: float) -> list[float]:
        """What each slope contributes to a step from ``sigmas[0]``: an exact integral."""
        return _integrals(tuple(sigmas), sigma_next)


@dataclass(frozen=True, kw_only=True)
class IPNDM(AdamsBashforth):
    """Adams-Bashforth with the weights of equal steps, whatever the schedule.

    Choose it to repeat published results; `AdamsBashforth` has the weights that the steps ask for.

    Order 2. Costs one network evaluation a step.

    Attributes:
        max_order: slopes that are used once there are so many, 1 to 4.

    Source: Zhang and Chen (arXiv:2204.13902), Appendix; Liu et al. (arXiv:2202.09778), Eq. 12, for
    the weights.
    """

    name: ClassVar[str] = "ipndm"
    order: ClassVar[int] = 2

    max_order: int = 4

    @override
    def weights(self, sigmas: Sequence[float], sigma_next: float) -> list[float]:
        return [(sigma_next - sigmas[0]) * weight for weight in _EQUAL[len(sigmas) - 1]]


@dataclass(frozen=True, kw_only=True)
class DEIS(AdamsBashforth):
    """Adams-Bashforth through slopes as functions of a variance-preserving time.

    Choose it for models trained in that time (VP, DDPM, ADM), with 10 to 20 steps.

    Order 2 as built, see `AdamsBashforth`. Costs one network evaluation a step.

    Attributes:
        max_order: slopes that are used once there are so many, 1 to 4.
        sigma_min: noise level of the time ``epsilon_s``.
        sigma_max: noise level of time 1.
        epsilon_s: the time at which noise is smallest.

    Source: Zhang and Chen (arXiv:2204.13902), Eq. 15 (``tab``), with the integrals by quadrature.
    """

    name: ClassVar[str] = "deis"
    order: ClassVar[int] = 2

    max_order: int = 2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    epsilon_s: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        vp_betas(self.sigma_min, self.sigma_max, self.epsilon_s)  # refuses ends without a time

    @override
    def weights(self, sigmas: Sequence[float], sigma_next: float) -> list[float]:
        betas = vp_betas(self.sigma_min, self.sigma_max, self.epsilon_s)
        return _integrals_in_time(tuple(sigmas), sigma_next, *betas)


_EQUAL = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of equal steps, the newest slope first."""

_NODES = np.polynomial.legendre.leggauss(32)


@lru_cache(maxsize=4096)
def _integrals(sigmas: tuple[float, ...], sigma_next: float) -> list[float]:
    """Integral of each Lagrange polynomial over the knots from ``sigmas[0]`` to ``sigma_next``."""
    # Measured from the step's start and in its length: powers of large levels would cancel.
    start, h = sigmas[0], sigma_next - sigmas[0]
    knots = [(sigma - start) / h for sigma in sigmas]
    weights = []
    for j, knot in enumerate(knots):
        others = [other for k, other in enumerate(knots) if k != j]
        polynomial = np.poly1d(others, r=True) / np.prod([knot - other for other in others])
        weights.append(float(h * np.polyint(polynomial)(1.0)))
    return weights


@lru_cache(maxsize=4096)
def _integrals_in_time(
    sigmas: tuple[float, ...], sigma_next: float, beta_d: float, beta_min: float
) -> list[float]:
    """The same with the polynomials in VP time, by Gauss-Legendre quadrature."""
    levels = torch.tensor([*sigmas, sigma_next], dtype=torch.float64)
    *knots, end = vp_t(levels, beta_d, beta_min).tolist()
    half, middle = (end - knots[0]) / 2, (end + knots[0]) / 2
    t = middle + half * _NODES[0]
    sigma = vp_sigma(torch.from_numpy(t), beta_d, beta_min).numpy()
    # d sigma / dt = (beta_d t + beta_min) (sigma + 1 / sigma) / 2
    density = 0.5 * (beta_d * t + beta_min) * (sigma + 1 / sigma)
    weights = []
    for j, knot in enumerate(knots):
        others = [other for k, other in enumerate(knots) if k != j]
        lagrange = np.prod([(t - other) / (knot - other) for other in others], axis=0)
        weights.append(float(half * np.sum(_NODES[1] * lagrange * density)))
    return weights
