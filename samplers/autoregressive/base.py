"""The contracts of autoregressive sampling: the model, the canvas and the decoder.

Legend: B batch, C channels, H and W height and width, P parameters of a pixel's distribution, U
uniform numbers that drawing one pixel takes.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab import config as configs
from genlab.diffusion.condition import NULL_CLASS
from genlab.errors import ConfigError, nearest
from genlab.networks.autoregressive import (
    AutoregressiveNetwork,
    PixelDecoder,
    PixelDistribution,
)
from genlab.networks.layers.precision import wide
from genlab.samplers.autoregressive.levels import ByLevels
from genlab.samplers.base import AnySampler, Layers, Step
from genlab.samplers.registries import DECODERS as DECODERS
from genlab.samplers.strength import left_out

SPACES = ("parameters", "levels")
"""Where guidance acts: on the parameters of a pixel's distribution, or on log-probabilities of
levels of its channels. For a softmax over levels both are the same."""


class PixelModel:
    """A network with a class for each image, guided by the null class: what decoders ask.

    Args:
        network: in evaluation mode.
        labels: one class for each image, -1 for the null class.
        guidance_scale: 1 is off; otherwise both classes run as one batch of 2 B.
        space: one of `SPACES`, in which guidance acts.
        top_p: see `DecodingConfig`.

    Attributes:
        distribution: of a pixel given what `params` says.
        evaluations: network evaluations so far, counted in rows: a whole image each, whether at
            once or pixel by pixel.
    """

    def __init__(
        self,
        network: AutoregressiveNetwork,
        labels: Int64[Tensor, " B"],
        guidance_scale: float = 1.0,
        *,
        space: str = "parameters",
        top_p: float = 1.0,
    ) -> None:
        self.network, self.scale = network, guidance_scale
        self.distribution: PixelDistribution = network.distribution
        self.is_guided = guidance_scale != 1
        if top_p < 1 or (self.is_guided and space == "levels"):
            scale = guidance_scale if space == "levels" else 1.0
            self.distribution = ByLevels(inner=network.distribution, scale=scale, top_p=top_p)
        nulls = torch.full_like(labels, NULL_CLASS)
        self.labels = torch.cat([labels, nulls]) if self.is_guided else labels
        self.evaluations = 0

    def params(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P H W"]:
        """What `distribution` takes, of all pixels at once."""
        self.evaluations += len(self.labels)
        return self._guide(self.network(self._twice(pixels), self.labels))

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let `params` compute in this dtype, on a copy of the network where it is another."""
        if self.network.dtype != dtype:
            # torch's own `to`: diffusers' wrapper warns of casts that lose precision.
            self.network = nn.Module.to(copy.deepcopy(self.network), dtype)

    def blank(self, canvas: "Canvas") -> Float[Tensor, "B C H W"]:
        """Images without any pixel drawn: 0, and what the canvas keeps."""
        batch, _, height, width = canvas.uniforms.shape
        channels: int = self.network.config["in_channels"]
        dtype = wide(self.network.dtype)
        empty = canvas.uniforms.new_zeros(batch, channels, height, width, dtype=dtype)
        return canvas.settle(empty)

    def decoder(self, height: int, width: int, dtype: torch.dtype | None = None) -> PixelDecoder:
        """Begin a batch pixel by pixel; see `AutoregressiveNetwork.decoder`."""
        self.evaluations += len(self.labels)
        inner = self.network.decoder(self.labels, height, width, dtype)
        return _GuidedDecoder(self, inner) if self.is_guided else inner

    def _twice(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels, pixels]) if self.is_guided else pixels

    def _guide(self, params: Tensor) -> Tensor:
        if not self.is_guided:
            return params
        conditional, null = params.chunk(2)
        return self.distribution.guide(conditional, null, self.scale)


class _GuidedDecoder(PixelDecoder):
    """Decodes with the class and without it, side by side."""

    def __init__(self, model: PixelModel, inner: PixelDecoder) -> None:
        self.model, self.inner = model, inner

    def params(self, i: int, j: int) -> Float[Tensor, "B P"]:
        return self.model._guide(self.inner.params(i, j))

    def put(self, i: int, j: int, pixel: Float[Tensor, "B C"]) -> None:
        self.inner.put(i, j, self.model._twice(pixel))


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What is to be drawn: every random number of the images, and the pixels that are kept.

    Attributes:
        uniforms: in [0, 1), (B, U, H, W); they and the model decide the images, whatever the
            decoder.
        temperature: of every draw, see `PixelDistribution.sample`.
        images: those whose pixels are kept, (B, C, H, W); None draws everything.
        keep: which ones, (B, 1, H, W) or the same for all, (1, 1, H, W).
    """

    uniforms: Float[Tensor, "B U H W"]
    temperature: float = 1.0
    images: Float[Tensor, "B C H W"] | None = None
    keep: Bool[Tensor, "#B 1 H W"] | None = None

    def settle(self, drawn: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The images with the pixels that are kept in their places."""
        if self.images is None or self.keep is None:
            return drawn
        return torch.where(self.keep, self.images.to(drawn.dtype), drawn)

    def settle_pixel(self, i: int, j: int, drawn: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        """The same for pixel (i, j)."""
        if self.images is None or self.keep is None:
            return drawn
        kept = self.images[:, :, i, j].to(drawn.dtype)
        return torch.where(self.keep[:, :, i, j], kept, drawn)


@runtime_checkable
class Decoder(Protocol):
    """Draws a batch of images: a frozen dataclass whose instance is called.

    Every decoder gives the same images (`genlab.samplers.autoregressive.precision.Precise` says how
    surely); they differ in what they compute how often.
    """

    def __call__(self, model: PixelModel, canvas: Canvas) -> Iterator[Step]:
        """Yield from time to time; the last step holds the images.

        Args:
            model: of the whole batch.
            canvas: what to draw.
        """
        ...


@dataclass(kw_only=True)
class DecodingConfig:
    """How to sample from an autoregressive model: the schema of ``sampler`` for this family.

    Attributes:
        decoder: ``name`` in `DECODERS` and the options of that decoder.
        temperature: 1 is the model itself, 0 its most likely choices. It divides log-probabilities
            of levels where guidance or ``top_p`` act on those. Otherwise a mixture of logistics has
            the logits of its components divided and their scales multiplied by it, as published.
        top_p: the likeliest levels of a channel that together have this probability are drawn from,
            0 < p <= 1; 1 takes all.
        guidance_scale: of guidance by the null class; 1 is off.
        guidance_space: ``parameters``, where weights, means and scales of a mixture are guided,
            each by itself; or ``levels``, where log-probabilities are: the exact product of powers,
            at a higher cost. For a softmax over levels both are the same.
    """

    example: ClassVar[Mapping[str, Any]] = {"temperature": 0.9}

    decoder: dict[str, Any] = field(default_factory=lambda: {"name": "cached"})
    temperature: float = 1.0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    guidance_space: str = "parameters"

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"sampler.temperature must be at least 0, got {self.temperature}; 1 is the model "
                "itself"
            )
        if not 0 <= self.guidance_scale < float("inf"):
            raise ConfigError(
                f"sampler.guidance_scale must be at least 0, got {self.guidance_scale}; 1 is off"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"sampler.top_p must lie above 0 and be at most 1, got {self.top_p}; 1 takes all "
                "levels, and sampler.temperature=0 the likeliest"
            )
        if self.guidance_space not in SPACES:
            raise ConfigError(
                f"sampler.guidance_space is no {self.guidance_space!r}; "
                f"{nearest(self.guidance_space, SPACES)}"
            )


@dataclass(frozen=True, kw_only=True)
class PixelSampler(AnySampler):
    """A decoder and its settings, ready to run.

    Attributes:
        decoder: draws.
        temperature: see `DecodingConfig`.
        top_p: see `DecodingConfig`.
        guidance_scale: see `DecodingConfig`.
        guidance_space: see `DecodingConfig`.
        text: the configuration that it was made of; None where it was made of objects.
    """

    decoder: Decoder
    temperature: float = 1.0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    guidance_space: str = "parameters"
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
    ) -> "PixelSampler":
        """An autoregressive model has no steps."""
        if guidance_interval is not None:
            raise ConfigError(
                "an autoregressive model has no noise levels, and its guidance acts on every pixel;"
                " leave the guidance interval out"
            )
        if num_steps is not None:
            raise ConfigError(
                "an autoregressive model draws every pixel once and has no number of steps; leave "
                "it out (sampler.temperature trades variety for quality)"
            )
        if guidance_scale is not None:
            layers = [*layers, ("the sampler", {"guidance_scale": guidance_scale})]
        whole = configs.fill(DecodingConfig, layers, "the sampler")
        return cls(
            decoder=DECODERS.build_named(whole.decoder),
            temperature=whole.temperature,
            top_p=whole.top_p,
            guidance_scale=whole.guidance_scale,
            guidance_space=whole.guidance_space,
            text=asdict(whole),
        )

    @property
    @override
    def config(self) -> Mapping[str, Any]:
        if self.text is not None:
            return self.text
        return {
            "decoder": DECODERS.entry_of(self.decoder),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "guidance_scale": self.guidance_scale,
            "guidance_space": self.guidance_space,
        }

    @override
    def left_out(self) -> Mapping[str, Any]:
        return dict(left_out(self.config["decoder"], self.decoder, "decoder"))

    def describe(self) -> str:
        """Decoder, and temperature and guidance where they do something."""
        words = [f"{self.config['decoder']['name']} decoding"]
        words += [f"temperature {self.temperature:g}"] if self.temperature != 1 else []
        words += [f"top-p {self.top_p:g}"] if self.top_p != 1 else []
        words += [f"guidance {self.guidance_scale:g}"] if self.guidance_scale != 1 else []
        return ", ".join(words)
