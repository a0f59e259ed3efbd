"""The schedule of improved DDPM: some of its discrete noise levels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.preconditioning import iddpm_table
from genlab.errors import ConfigError
from genlab.samplers.schedules.base import NoiseSchedule


def iddpm_sigmas(
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
) -> Float64[Tensor, " N"]:
    """Evenly spaced among those of iDDPM's M noise levels that lie in the range.

    Raises:
        ConfigError: none of them lies in the range.

    Source: EDM's Table 1, third column, as the official ablation sampler picks them.
    """
    u = iddpm_table(C_1, C_2, M, torch.float64)
    u = u[(u >= sigma_min) & (u <= sigma_max)]
    if len(u) == 0:
        raise ConfigError(
            f"none of iDDPM's {M} noise levels lies between {sigma_min:g} and {sigma_max:g}; widen"
            " the range"
        )
    # Multiplied in this order because ties are rounded: 0.5 must be the same 0.5 as officially.
    step = (len(u) - 1) / max(num_steps - 1, 1)
    return u[(step * torch.arange(num_steps, dtype=torch.float64)).round().to(torch.int64)]


@dataclass(frozen=True, kw_only=True)
class IDDPM(NoiseSchedule):
    """Even steps among iDDPM's discrete noise levels.

    Choose it to reproduce how those models were first sampled.

    Attributes:
        C_1: as the model's, > 0.
        C_2: as the model's, >= 0.
        M: number of noise levels of the model, >= 1.

    Source: EDM (arXiv:2206.00364), Table 1, third column.
    """

    suits: ClassVar[str] = "any; iDDPM"

    sigma_max: float = 81.0
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.C_1 > 0 and self.C_2 >= 0 and self.M >= 1):
            raise ConfigError(
                "the iddpm schedule needs C_1 > 0, C_2 >= 0 and M >= 1, got"
                f" {self.C_1:g}, {self.C_2:g} and {self.M}"
            )

    @override
    def levels(self, sigma_min: float, sigma_max: float) -> Float64[Tensor, " N"]:
        return iddpm_sigmas(self.num_steps, sigma_min, sigma_max, self.C_1, self.C_2, self.M)
