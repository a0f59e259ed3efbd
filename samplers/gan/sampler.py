"""How a GAN is sampled: truncation, batch statistics, rejection, Langevin dynamics.

Legend: B batch, K sets of statistics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from typing_extensions import override

from genlab import config as configs
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError
from genlab.samplers import parts
from genlab.samplers.base import AnySampler, Layers
from genlab.samplers.gan.langevin import Langevin
from genlab.samplers.gan.rejection import Rejection
from genlab.samplers.parts import Part

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


PARTS = (
    ("rejection", "discriminator"),
    ("langevin", "discriminator"),
    ("langevin", "classifier"),
)
"""Where models stand that a sampler uses: entry and option, which is their kind, too."""

ADDED = ("rejection", "langevin")
"""Entries that a configuration names only where they are set: else they are left out of records."""


@dataclass(frozen=True, kw_only=True)
class GanConfig:
    """How to sample from a GAN: the schema of ``sampler`` for this family.

    ``rejection`` is discriminator rejection sampling: images are drawn again until a discriminator
    accepts one. ``langevin`` lets the latents walk towards images that a classifier (or a
    discriminator) likes. Both are null, which is off; one option switches them on, such as
    ``sampler.langevin.classifier=classifier-fmnist``. They exclude each other: a discriminator
    judges what its generator draws, and a walk draws something else.

    Attributes:
        truncation: trades variety for quality: latents are this times a normal variable cut off at
            -2 and 2. None takes untruncated normal latents.
        resample: whether the truncation is the threshold itself, beyond which latents are drawn
            again (the paper's words), in place of a scale (what its authors released).
        statistics: of batch normalisation.
        rejection: draws again until a discriminator accepts; None accepts every image.
        langevin: lets the latents walk; None takes them as they are drawn.
        hf_compat: whether to pick stored statistics by truncation as Hugging Face's code does,
            which swaps the two weights of its interpolation.

    Source: Brock et al. 2018, arXiv:1809.11096, section 3.1 (truncation) and Appendix D (standing
    statistics); Azadi et al. 2018, arXiv:1810.06758 (rejection); Nguyen et al. 2017,
    arXiv:1612.00005, and Che et al. 2020, arXiv:2003.06060 (langevin).
    """

    example: ClassVar[Mapping[str, Any]] = {"truncation": 0.5}

    truncation: float | None = None
    resample: bool = False
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    rejection: Rejection | None = None
    langevin: Langevin | None = None
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
        if self.rejection is not None and self.langevin is not None:
            raise ConfigError(
                "sampler.rejection and sampler.langevin exclude each other: a discriminator judges "
                "what its generator draws, and a walk draws something else; set one of them to null"
            )


@dataclass(frozen=True, kw_only=True)
class GanSampler(GanConfig, AnySampler):
    """The same, ready to run.

    Attributes:
        text: the configuration that it was made of, where parts have been loaded since.
    """

    text: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @classmethod
    @override
    def from_layers(
        cls,
        layers: Layers,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> "GanSampler":
        """A GAN has neither steps nor a scale."""
        options = {
            "number of steps": num_steps,
            "guidance scale": guidance_scale,
            "guidance interval": guidance_interval,
        }
        for name, value in options.items():
            if value is not None:
                raise ConfigError(
                    f"a GAN draws an image in one call and has no {name}; leave it out "
                    "(sampler.truncation trades variety for quality)"
                )
        return cls(**vars(configs.fill(GanConfig, layers, "the sampler")))

    @property
    @override
    def config(self) -> Mapping[str, Any]:
        if self.text is not None:
            return self.text
        plain = {each.name: _plain(getattr(self, each.name)) for each in fields(GanConfig)}
        return {key: value for key, value in plain.items() if not _is_left_out(key, value)}

    @override
    def left_out(self) -> Mapping[str, Any]:
        config = self.config
        plain = {each.name: _plain(getattr(self, each.name)) for each in fields(GanConfig)}
        return {key: value for key, value in plain.items() if key not in config}

    @property
    @override
    def parts(self) -> Mapping[str, Sequence[Part]]:
        """Parts that are named still must be loaded first."""
        return {option: [model] for _, option, model in self.named_parts()}

    def named_parts(self) -> list[tuple[str, str, Any]]:
        """Entry, option (which is the kind, too) and model of each part."""
        named = [(entry, option, getattr(self, entry)) for entry, option in PARTS]
        models = [(e, o, getattr(owner, o)) for e, o, owner in named if owner is not None]
        return [(entry, option, model) for entry, option, model in models if model is not None]

    @override
    def load_parts(self) -> "GanSampler":
        """The same sampler with parts that are named read from where their names point to.

        Raises:
            GenLabError: there is no such model, or it is damaged.
        """
        loaded = {
            entry: replace(getattr(self, entry), **{option: parts.load(option, str(model))})
            for entry, option, model in self.named_parts()
            if isinstance(model, str | Path)
        }
        return replace(self, **loaded, text=self.config) if loaded else self

    def describe(self) -> str:
        """Truncation, statistics, rejection and walk."""
        passes = self.statistics.standing
        words = ["no truncation" if self.truncation is None else f"truncation {self.truncation:g}"]
        words += ["resampled"] if self.resample else []
        words += [f"statistics of {passes} passes"] if passes else []
        words += [each.describe() for each in (self.rejection, self.langevin) if each is not None]
        return ", ".join(words)

    @property
    def prior(self) -> tuple[float, float | None]:
        """(scale, bound): latents are the scale times normal numbers within the bound, if any."""
        if self.truncation is None:
            return 1.0, None
        return (1.0, self.truncation) if self.resample else (self.truncation, BOUND)

    def latents(self, noise: Noise, dim_z: int) -> Float32[Tensor, "B dim_z"]:
        """Draw latents, each sample's from its own stream."""
        scale, bound = self.prior
        if bound is None:
            return noise.randn((dim_z,))
        return truncated_normal(noise, (dim_z,), bound) * scale

    def mixture(self, num_stats: int) -> Float32[Tensor, " K"]:
        """Weights of stored sets of statistics, of truncations 0 to 1 in equal steps."""
        truncation = 1.0 if self.truncation is None else self.truncation
        mix = hf_mixture if self.hf_compat else mixture
        return mix(truncation, num_stats).to(torch.float32)


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and paths as text; models stay as they are, and are not copied."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return str(value) if isinstance(value, Path) else value


def _is_left_out(key: str, value: Any) -> bool:
    return key in ADDED and value is None


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
    """Hugging Face's reading of a truncation in (0, 1]: interpolation with swapped weights.

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
