"""The interface of a model's noise levels, which schedules, solvers and guidance use."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

FIXED_VARIANCES = ("fixed_small", "fixed_large")
VARIANCES = (*FIXED_VARIANCES, "learned_range", "learned")
"""Which variance a reverse step may have; `genlab.diffusion.discrete.Chain` says more."""


class NoiseLevels(ABC):
    """The noise levels of a model, in the unscaled frame; every preconditioning is one.

    Attributes:
        sigma_min: smallest noise level that the model knows (>= 0).
        sigma_max: largest one (may be ``inf``).
        levels: all of them for a discrete model, increasing, (T,); None for a continuous one.
        variance: which of `VARIANCES` a step of ancestral sampling has.
        exact: whether estimates keep the float64 of a sampler's state; in float32 they are what
            official models of this kind compute.
    """

    if TYPE_CHECKING:  # a field of a subclass without a default must find nothing here

        @property
        def sigma_min(self) -> float: ...  # noqa: D102
        @property
        def sigma_max(self) -> float: ...  # noqa: D102

    exact: ClassVar[bool] = False
    variance: str = "fixed_small"

    @property
    def levels(self) -> Float64[Tensor, " T"] | None:
        """All noise levels of a discrete model, increasing; None for a continuous one."""
        return None

    @property
    def continuous(self) -> bool:
        """Whether every noise level of the range may be asked for, not only those of `levels`."""
        return self.levels is None

    @abstractmethod
    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The model's normalised time in [0, 1] at ``sigma`` >= 0: 1 = pure noise, 0 = data."""

    def time_of(self, level: float) -> float:
        """The same of one noise level, as a Python number, for decisions made once a step."""
        return float(self.time(torch.tensor(level, dtype=torch.float64)))

    def round_sigma(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Nearest noise levels that the model knows, in dtype and shape of ``sigma``.

        The identity for continuous models.
        """
        return sigma

    def scalings(self, sigma: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], ...]:
        """(c_skip, c_out) at ``sigma`` > 0, where ``x0 = c_skip x + c_out F`` of the output F.

        They tell the space that the model itself predicts in; without a network that is x0.
        """
        return torch.zeros_like(sigma), torch.ones_like(sigma)
