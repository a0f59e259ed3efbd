"""How a GAN is sampled: how far its latents are truncated, and which batch statistics it uses.

Legend: B batch, K sets of statistics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from genlab import config as configs
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError
from genlab.samplers.base import AnySampler, Layers

BOUND = 2.0
"""Where the normal distribution is cut off before it is scaled by the truncation."""


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """Which statistics batch normalisation uses.

    Attributes:
        standing: passes over fresh latents whose statistics are averaged in place of the stored
            ones, 0 for the stored ones. They fit the truncation; stored ones come from training,
            where there is none. Brock et al. take 100 passes.
        batch_size: images in each of these passes.
    """

    standing: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.standing < 0 or self.batch_size < 1:
            raise ConfigError(
                "sampler.statistics needs standing of at least 0 passes and a batch_size of at "
                f"least 1, got {self.standing} and {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class GanSampler(AnySampler):
    """How to sample from a GAN; it is the schema of ``sampler`` for this family, too.

    Attributes:
        truncation: trades variety for quality: latents are this times a normal variable cut off at
            -2 and 2. None takes untruncated normal latents.
        resample: whether the truncation is the threshold itself, beyond which latents are drawn
            again (the paper's words), in place of a scale (what its authors released).
        statistics: of batch normalisation.
        hf_compat: whether to pick stored statistics by truncation as Hugging Face's code does,
            which swaps the two weights of its interpolation.

    Source: Brock et al. 2018, arXiv:1809.11096, section 3.1 (truncation) and Appendix D (standing
    statistics).
    """

    example: ClassVar[Mapping[str, Any]] = {"truncation": 0.5}

    truncation: float | None = None
    resample: bool = False
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    hf_compat: bool = False

    def __post_init__(self) -> None:
        if self.truncation is not None and not 0 < self.truncation < math.inf:
            raise ConfigError(
                f"sampler.truncation must lie above 0, got {self.truncation}; null is no truncation"
            )
        if self.resample and self.truncation is None:
            raise ConfigError(
                "sampler.resample needs a threshold; set sampler.truncation, for instance to 1"
            )

    @classmethod
    def from_layers(
        cls,
        layers: Layers,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> "GanSampler":
        """See `AnySampler.from_layers`; a GAN has neither steps nor a scale."""
        told = {
            "number of steps": num_steps,
            "guidance scale": guidance_scale,
            "guidance interval": guidance_interval,
        }
        for what, value in told.items():
            if value is not None:
                raise ConfigError(
                    f"a GAN draws an image in one call and has no {what}; leave it out "
                    "(sampler.truncation trades variety for quality)"
                )
        return configs.fill(cls, layers, "the sampler")

    @property
    def config(self) -> Mapping[str, Any]:
        """See `AnySampler.config`."""
        return asdict(self)

    def describe(self) -> str:
        """Truncation and statistics."""
        passes = self.statistics.standing
        words = ["no truncation" if self.truncation is None else f"truncation {self.truncation:g}"]
        words += ["resampled"] if self.resample else []
        words += [f"statistics of {passes} passes"] if passes else []
        return ", ".join(words)

    def latents(self, noise: Noise, dim_z: int) -> Float32[Tensor, "B dim_z"]:
        """Draw latents, each sample's from its own stream."""
        if self.truncation is None:
            return noise.randn((dim_z,))
        if self.resample:
            return truncated_normal(noise, (dim_z,), self.truncation)
        return truncated_normal(noise, (dim_z,), BOUND) * self.truncation

    def mixture(self, num_stats: int) -> Float32[Tensor, " K"]:
        """Weights of stored sets of statistics, of truncations 0 to 1 in equal steps."""
        truncation = 1.0 if self.truncation is None else self.truncation
        mix = hf_mixture if self.hf_compat else mixture
        return mix(truncation, num_stats).to(torch.float32)


def truncated_normal(noise: Noise, shape: Sequence[int], bound: float) -> Float32[Tensor, "B ..."]:
    """Normal numbers given that they lie in [-bound, bound], by inverting their distribution.

    Resampling would take another number of draws for each sample, and so move its stream.
    """
    uniform = noise.rand(shape, torch.float64)
    outside = torch.special.ndtr(torch.tensor(-bound, dtype=uniform.dtype)).item()
    inside = torch.special.ndtri(outside + uniform * (1 - 2 * outside))
    return inside.to(torch.float32).clamp(-bound, bound)


def mixture(truncation: float, num_stats: int) -> Float64[Tensor, " K"]:
    """Linear interpolation between the sets on either side of a truncation in [0, 1]."""
    weights = torch.zeros(num_stats, dtype=torch.float64)
    share, start = math.modf(truncation * (num_stats - 1))
    weights[int(start)] = 1 - share
    if share:
        weights[int(start) + 1] = share
    return weights


def hf_mixture(truncation: float, num_stats: int) -> Float64[Tensor, " K"]:
    """What Hugging Face's code makes of a truncation in (0, 1]: interpolation with swapped weights.

    With 51 sets the truncations 0.14, 0.28, 0.56, 0.58 and 0.94, which dividing by the step of 0.02
    does not make whole, so take a neighbour's set.
    """
    weights = torch.zeros(num_stats, dtype=torch.float64)
    share, start = math.modf(truncation / (1 / (num_stats - 1)))
    row = int(start)
    weights[row] = share or 1
    if share:
        # Where rounding leads past the last set, the official code fails.
        weights[min(row + 1, num_stats - 1)] += 1 - share
    return weights


def check_latents(latents: Float[Tensor, "B ..."], dim_z: int) -> None:
    """Refuse latents of another shape than the network's.

    Raises:
        ConfigError: names both shapes.
    """
    if latents.ndim != 2 or latents.shape[1] != dim_z:
        raise ConfigError(
            f"latents must have {dim_z} numbers for each image, got {tuple(latents.shape[1:])}"
        )
