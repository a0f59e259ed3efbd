"""Preconditioning: the scalings that make a network a denoiser (EDM's Table 1).

``D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))`` in the unscaled
frame ``x = x0 + sigma n``. Everything here is arithmetic on noise levels; the network comes in with
`genlab.diffusion.preconditioned`.
"""

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.tables import placed
from genlab.errors import ConfigError
from genlab.registry import Registry

MOST_LEVELS = 100_000
"""Discrete noise levels of a model; published ones have 1000 or 4000."""


@dataclass(frozen=True)
class Coefficients:
    """The four scalings at a noise level, or at one for each sample; shaped as ``sigma`` is.

    Attributes:
        c_skip: weight of the noisy image in the estimate.
        c_out: weight of the network's output.
        c_in: scale of the noisy image on its way into the network.
        c_noise: the noise level as the network gets it.
    """

    c_skip: Float[Tensor, "*s"]
    c_out: Float[Tensor, "*s"]
    c_in: Float[Tensor, "*s"]
    c_noise: Float[Tensor, "*s"]


class Preconditioning(NoiseLevels):
    """A model's noise levels with their scalings; subclasses are frozen, registered dataclasses.

    Attributes:
        name: the key in `PRECONDITIONINGS`.
    """

    name: ClassVar[str]

    @abstractmethod
    def coefficients(self, sigma: Float[Tensor, "*s"]) -> Coefficients:
        """The four scalings at ``sigma`` (> 0, any shape), in the dtype of ``sigma``."""

    @override
    def scalings(self, sigma: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], ...]:
        c = self.coefficients(sigma)
        return c.c_skip, c.c_out

    def to_config(self) -> dict[str, Any]:
        """A ``name`` and plain values for `from_config`; no infinities, which JSON cannot say."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]  # every subclass is a dataclass
        plain = {name: value for name, value in fields.items() if value not in (None, math.inf)}
        return {"name": self.name, **plain}


def from_config(config: Mapping[str, Any]) -> Preconditioning:
    """Build a preconditioning from what `Preconditioning.to_config` wrote.

    Args:
        config: ``name`` and any of that class's fields; what is missing takes its default.

    Raises:
        ConfigError: ``name`` is missing, or a field is unknown or out of range.
        UnknownNameError: no preconditioning has this name.
    """
    preconditioning: Preconditioning = PRECONDITIONINGS.build_named(config)
    return preconditioning


@dataclass(frozen=True)
class EDM(Preconditioning):
    """EDM: unit-variance inputs and targets at every noise level.

    Choose it for every model trained from scratch. Source: arXiv:2206.00364, Eq. 7 and Table 1.

    Attributes:
        sigma_data: standard deviation of the data, > 0.
        sigma_min: smallest noise level that the model is asked for.
        sigma_max: largest one.
    """

    name: ClassVar[str] = "edm"

    sigma_data: float = 0.5
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __post_init__(self) -> None:
        _require(self.sigma_data > 0, "sigma_data must be > 0", self.sigma_data)
        _require_range(self.sigma_min, self.sigma_max)

    def coefficients(self, sigma: Float[Tensor, "*s"]) -> Coefficients:
        """EDM's Table 1, last column."""
        variance = sigma**2 + self.sigma_data**2
        return Coefficients(
            c_skip=self.sigma_data**2 / variance,
            c_out=sigma * self.sigma_data / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=sigma.log() / 4,
        )

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The share of EDM's standard schedule (rho 7, 80 to 0.002) that is still ahead.

        EDM itself leaves time open; this choice makes a share of time a share of sampling steps, as
        it is in the discrete models that tau-like settings were tuned on.
        """
        low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
        return ((sigma ** (1 / 7) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class VP(Preconditioning):
    """Variance preserving: Song et al.'s continuous DDPM, epsilon prediction.

    `sigma` and `t` are evaluated in the dtype of their input, and without expm1 or log1p, because
    that is what official models were trained with: in float32 sigma(1e-5) comes out as 0.0009765625
    (exactly it is 0.0010005).

    Attributes:
        beta_d: extent of the noise schedule, > 0.
        beta_min: its initial slope, > 0.
        M: timesteps of the DDPM formulation; the network gets ``(M - 1) t``.
        epsilon_t: smallest time used in training.
    """

    name: ClassVar[str] = "vp"

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    epsilon_t: float = 1e-5

    def __post_init__(self) -> None:
        _require(self.beta_d > 0, "beta_d must be > 0", self.beta_d)
        _require(self.beta_min > 0, "beta_min must be > 0", self.beta_min)
        _require(1 <= self.M <= MOST_LEVELS, f"M must be >= 1 and <= {MOST_LEVELS}", self.M)
        _require(0 < self.epsilon_t < 1, "epsilon_t must lie between 0 and 1", self.epsilon_t)

    @cached_property
    def sigma_min(self) -> float:
        """The noise level of ``epsilon_t``."""
        return float(self.sigma(torch.tensor(self.epsilon_t, dtype=torch.float32)))

    @cached_property
    def sigma_max(self) -> float:
        """The noise level of ``t = 1``."""
        return float(self.sigma(torch.tensor(1.0, dtype=torch.float32)))

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Noise level of time ``t`` in [0, 1]: ``sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)``."""
        return vp_sigma(t, self.beta_d, self.beta_min)

    def t(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Time of a noise level, the inverse of `sigma`."""
        return vp_t(sigma, self.beta_d, self.beta_min)

    def coefficients(self, sigma: Float[Tensor, "*s"]) -> Coefficients:
        """EDM's Table 1, first column."""
        return Coefficients(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / (sigma**2 + 1).sqrt(),
            c_noise=(self.M - 1) * self.t(sigma),
        )

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The model's own ``t``."""
        return self.t(sigma).clamp(0, 1)


@dataclass(frozen=True)
class VE(Preconditioning):
    """Variance exploding: Song et al.'s NCSN models, score prediction.

    Attributes:
        sigma_min: smallest noise level of training, > 0.
        sigma_max: largest one.
    """

    name: ClassVar[str] = "ve"

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _require(self.sigma_min > 0, "sigma_min must be > 0", self.sigma_min)
        _require_range(self.sigma_min, self.sigma_max)

    def coefficients(self, sigma: Float[Tensor, "*s"]) -> Coefficients:
        """EDM's Table 1, second column."""
        one = torch.ones_like(sigma)
        return Coefficients(c_skip=one, c_out=sigma, c_in=one, c_noise=(0.5 * sigma).log())

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Song et al.'s ``t``: ``sigma = sigma_min (sigma_max / sigma_min)^t``."""
        return ((sigma / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)).clamp(
            0, 1
        )


@dataclass(frozen=True)
class IDDPM(Preconditioning):
    """Improved DDPM: epsilon prediction at M discrete noise levels (EDM's Table 1, third column).

    Attributes:
        C_1: bounds the last factor of alpha_bar from below, > 0.
        C_2: offset of the cosine schedule, >= 0.
        M: number of noise levels.
    """

    name: ClassVar[str] = "iddpm"

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000

    def __post_init__(self) -> None:
        _require(self.C_1 > 0, "C_1 must be > 0", self.C_1)
        _require(self.C_2 >= 0, "C_2 must be >= 0", self.C_2)
        _require(1 <= self.M <= MOST_LEVELS, f"M must be >= 1 and <= {MOST_LEVELS}", self.M)

    @cached_property
    def u(self) -> Float32[Tensor, " levels"]:
        """The noise levels from the largest to 0: M + 1 numbers in float32."""
        return iddpm_table(self.C_1, self.C_2, self.M, torch.float32)

    @cached_property
    def levels(self) -> Float64[Tensor, " levels"]:
        """The noise levels above 0, increasing."""
        return self.u[:-1].flip(0).to(torch.float64)

    @cached_property
    def sigma_min(self) -> float:
        """The smallest noise level above 0."""
        return float(self.u[self.M - 1])

    @cached_property
    def sigma_max(self) -> float:
        """The largest noise level."""
        return float(self.u[0])

    def index(self, sigma: Float[Tensor, "*s"]) -> Tensor:
        """Index into `u` of the nearest level by absolute difference, int64.

        The last entry, sigma = 0, takes part: tiny noise levels get index M and hence a ``c_noise``
        of -1, as officially.
        """
        u = placed(self.u, sigma.device, torch.float32)
        return (sigma.to(torch.float32).reshape(-1, 1) - u).abs().argmin(1).reshape(sigma.shape)

    def round_sigma(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The nearest entry of `u`."""
        return placed(self.u, sigma.device, sigma.dtype)[self.index(sigma)]

    def coefficients(self, sigma: Float[Tensor, "*s"]) -> Coefficients:
        """EDM's Table 1, third column."""
        return Coefficients(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / (sigma**2 + 1).sqrt(),
            c_noise=self.M - 1 - self.index(sigma).to(sigma.dtype),
        )

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The share of levels that are still ahead: 1 at the largest, 0 at sigma = 0."""
        return 1 - self.index(sigma).to(sigma.dtype) / self.M


PRECONDITIONINGS: Registry[type[Preconditioning]] = Registry(
    "genlab.preconditionings",
    {
        "edm": "genlab.diffusion.preconditioning:EDM",
        "vp": "genlab.diffusion.preconditioning:VP",
        "ve": "genlab.diffusion.preconditioning:VE",
        "iddpm": "genlab.diffusion.preconditioning:IDDPM",
        "discrete": "genlab.diffusion.discrete:Discrete",
        "flow": "genlab.diffusion.flow:Flow",
    },
)


def vp_sigma(t: Float[Tensor, "*s"], beta_d: float, beta_min: float) -> Float[Tensor, "*s"]:
    """Noise level of the variance-preserving time ``t``, in its dtype (EDM's Table 1)."""
    return ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt()


def vp_t(sigma: Float[Tensor, "*s"], beta_d: float, beta_min: float) -> Float[Tensor, "*s"]:
    """Variance-preserving time of a noise level, in its dtype; the inverse of `vp_sigma`."""
    return ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d


@lru_cache(maxsize=16)
def iddpm_table(C_1: float, C_2: float, M: int, dtype: torch.dtype) -> Float[Tensor, " levels"]:
    """The noise levels of an iDDPM model from the largest down to 0: M + 1 numbers, on the CPU.

    ``u[M] = 0``, ``u[j-1] = sqrt((u[j]^2 + 1) / max(a(j-1) / a(j), C_1) - 1)`` with
    ``a(j) = sin^2(pi/2 * j / (M (C_2 + 1)))``. Source: EDM (arXiv:2206.00364), Table 1, third
    column. ``a`` is in float32 whatever ``dtype`` the recursion runs in, as in the official code.
    The result is shared: do not write into it.
    """
    j = torch.arange(M + 1, dtype=torch.float32)
    alpha_bar = (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2
    ratio = (alpha_bar[:-1] / alpha_bar[1:]).clamp(min=C_1).to(dtype)
    u = torch.zeros(M + 1, dtype=dtype)
    for i in range(M, 0, -1):
        u[i - 1] = ((u[i] ** 2 + 1) / ratio[i - 1] - 1).sqrt()
    return u


def _require(holds: bool, rule: str, value: float) -> None:
    if not holds:
        raise ConfigError(f"{rule} in a preconditioning, got {value}")


def _require_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 <= sigma_min < sigma_max:
        raise ConfigError(
            f"a preconditioning needs 0 <= sigma_min < sigma_max, got {sigma_min} and {sigma_max}"
        )
