"""The autoencoder between images and the latents that a latent diffusion model works on.

diffusers' models as they are, behind one interface that applies their scale and shift, bounds the
memory of decoding and tells one autoencoder from another.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab import compute
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError, printable
from genlab.files import text_sha256
from genlab.saving.models import (
    model_class,
    own_config,
    read_model,
    weights_sha256,
    write_model,
)

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
"""The autoencoders that GenLab knows, by their names in diffusers, which imports each when it is
asked for: that takes longer than all the rest that a model of pixels needs."""

SLICE_PIXELS = 2**18
"""Pixels that are decoded at a time: four images of 256x256, one of 512x512 or larger."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The output of an encoder for a batch of images: a Gaussian for each of them.

    Attributes:
        mean: (B, C, H, W), scaled as the diffusion model wants it.
        std: its standard deviation, of the same shape; None where the encoder is deterministic.
    """

    mean: Float[Tensor, "B C H W"]
    std: Float[Tensor, "B C H W"] | None

    def sample(self, noise: Noise) -> Float[Tensor, "B C H W"]:
        """Draw latents; a deterministic encoder draws nothing."""
        if self.std is None:
            return self.mean
        return self.mean + self.std * noise.randn(self.mean.shape[1:]).to(self.mean)


class Autoencoder:
    """Images to latents and back: ``latents = (code - shift) * scale``.

    The scale (0.18215 in Stable Diffusion and DiT) brings latents to about unit variance; diffusers
    keeps it in the autoencoder's config and leaves applying it to the caller.

    Args:
        model: diffusers' AutoencoderKL or AutoencoderTiny, of square images.
        slice_pixels: see `SLICE_PIXELS`; it changes memory and speed, never the images.

    Attributes:
        image_channels: of images, 1 or 3.
        latent_channels: of latents.
        factor: pixels of an image for each of a latent, along one side.

    Raises:
        ConfigError: another class, or a config that makes no sense.

    Source: Rombach et al. 2022 (arXiv:2112.10752), Sec. 3.1 and Appendix D.1 (the scale).
    """

    def __init__(self, model: nn.Module, *, slice_pixels: int = SLICE_PIXELS) -> None:
        name = type(model).__name__
        if name not in CLASSES or type(model) is not autoencoder_classes()[name]:
            raise ConfigError(f"GenLab knows the autoencoders {', '.join(CLASSES)}, not {name}")
        config: Any = model.config
        if config.in_channels != config.out_channels:
            raise ConfigError(
                f"the autoencoder takes images of {config.in_channels} channels and gives "
                f"{config.out_channels}; it must be the same number"
            )
        if getattr(config, "upsampling_scaling_factor", 2) != 2:
            raise ConfigError(
                "the autoencoder's upsampling_scaling_factor is "
                f"{printable(config.upsampling_scaling_factor, 40)}; GenLab knows those that halve "
                "and double sides, whose factor is 2"
            )
        self.model = model
        self.slice_pixels = slice_pixels
        self.image_channels: int = config.in_channels
        self.latent_channels: int = config.latent_channels
        blocks = getattr(config, "encoder_block_out_channels", None) or config.block_out_channels
        self.factor: int = 2 ** (len(blocks) - 1)
        self._needs_float32: bool = config.force_upcast
        self._scale, self._shift = _normalisation(config)

    @property
    def is_gaussian(self) -> bool:
        """Whether the encoder gives a Gaussian for each image rather than one code."""
        return not _is_tiny(self.model)

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the latents of images of the shape (C, H, W).

        Raises:
            ConfigError: images of other channels, or whose sides are no multiples of `factor`.
        """
        channels, height, width = image_shape
        if channels != self.image_channels:
            raise ConfigError(
                f"the autoencoder is made for images of {self.image_channels} channels, these have "
                f"{channels}; set channels to {self.image_channels}"
            )
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"images of {height}x{width} cannot be encoded: the autoencoder shrinks them "
                f"{self.factor} times; choose a size that is a multiple of {self.factor}"
            )
        return self.latent_channels, height // self.factor, width // self.factor

    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the images of latents of the shape (C, H, W).

        Raises:
            ConfigError: latents of other channels.
        """
        channels, height, width = latent_shape
        if channels != self.latent_channels:
            raise ConfigError(
                f"the autoencoder has latents of {self.latent_channels} channels, these have "
                f"{channels}; use the autoencoder that the model was trained with"
            )
        return self.image_channels, height * self.factor, width * self.factor

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B C H W"]) -> Encoded:
        """Encode images in slices.

        Args:
            images: in [-1, 1], on any device.

        Returns:
            Mean and standard deviation in float32, on the autoencoder's device.
        """
        self.latent_shape((images.shape[1], images.shape[2], images.shape[3]))
        with self._safe_precision():
            parts = [self._encode(part) for part in self._slices(images, images[0, 0].numel())]
        stds = [part.std for part in parts if part.std is not None]
        return Encoded(
            mean=torch.cat([part.mean for part in parts]), std=torch.cat(stds) if stds else None
        )

    def _encode(self, images: Tensor) -> Encoded:
        model: Any = self.model
        coded = model.encode(images.to(self.device, self.dtype))
        scale, shift = (v.to(self.device) for v in (self._scale, self._shift))
        if _is_tiny(model):
            return Encoded(mean=(coded.latents.to(torch.float32) - shift) * scale, std=None)
        gaussian = coded.latent_dist
        mean = (gaussian.mean.to(torch.float32) - shift) * scale
        return Encoded(mean=mean, std=gaussian.std.to(torch.float32) * scale)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Decode latents in slices of `SLICE_PIXELS`, so that memory does not grow with the batch.

        Args:
            latents: as the diffusion model gives them, on any device.

        Returns:
            Images in float32, in [-1, 1] up to overshoot.
        """
        channels, height, width = latents.shape[1:]
        _, *sides = self.image_shape((channels, height, width))
        with self._safe_precision():
            slices = self._slices(latents, math.prod(sides))
            return torch.cat([self._decode(part) for part in slices])

    def _decode(self, latents: Tensor) -> Tensor:
        model: Any = self.model
        scale, shift = (v.to(self.device) for v in (self._scale, self._shift))
        code = latents.to(self.device, torch.float32) / scale + shift
        images: Tensor = model.decode(code.to(self.dtype)).sample
        return images.to(torch.float32)

    def _safe_precision(self) -> AbstractContextManager[object]:
        """A context in which the model does not overflow, whatever its weights were converted to.

        A pipeline casts all its models, and previews of a training are drawn under autocast.
        """
        if not self._needs_float32:
            return nullcontext()
        self.to(dtype=torch.float32)
        return torch.autocast(self.device.type, enabled=False)

    def _slices(self, batch: Tensor, pixels: int) -> Iterator[Tensor]:
        yield from batch.split(max(1, self.slice_pixels // pixels))

    @property
    def device(self) -> torch.device:
        """Where the autoencoder is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the autoencoder computes in."""
        return next(self.model.parameters()).dtype

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Autoencoder":
        """Move the autoencoder.

        Args:
            device: None stays where it is.
            dtype: what it computes in. One whose config says ``force_upcast`` stays in float32: it
                overflows in float16, and decoding is a small share of the work.
        """
        model_dtype = torch.float32 if self._needs_float32 and dtype is not None else dtype
        nn.Module.to(self.model, device=device, dtype=model_dtype)  # its own warns without a cause
        return self

    def prepare(self) -> None:
        """Set evaluation mode and the memory layout that is fastest on the device."""
        self.model.eval()
        compute.choose(self.device).prepare(self.model)

    def compile(self) -> None:
        """Compile the decoder, the only part that sampling needs."""
        decoder: Any = self.model.decoder
        decoder.compile()

    def sha256(self) -> str:
        """SHA-256 over config and weights: equal for autoencoders with the same latents."""
        weights = weights_sha256(self.model.state_dict().items())
        return text_sha256([type(self.model).__name__, own_config(self.model), weights])

    def save_pretrained(self, folder: Path | str) -> None:
        """Write config.json and safetensors, as diffusers does."""
        write_model(Path(folder), self.model)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "Autoencoder":
        """Read a folder that diffusers or `save_pretrained` wrote, in float32 on the CPU.

        Raises:
            CheckpointError: it holds no autoencoder that GenLab knows, or is damaged.
        """
        folder = Path(folder)
        kind = model_class(folder, autoencoder_classes())
        return cls(read_model(folder, kind, kind="autoencoder"))


def autoencoder_classes() -> dict[str, type[Any]]:
    """Name -> class of `CLASSES`, imported now."""
    diffusers = import_module("diffusers")
    return {name: getattr(diffusers, name) for name in CLASSES}


def _normalisation(config: Any) -> tuple[Float[Tensor, "#C 1 1"], Float[Tensor, "#C 1 1"]]:
    """(scale, shift) as a config tells them: one for all channels, or one for each."""
    factor = _numbers(config, "scaling_factor", 1)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        shift = _numbers(config, "shift_factor", 1)
        scale = factor
    else:
        shift = _numbers(config, "latents_mean", config.latent_channels)
        scale = factor / _numbers(config, "latents_std", config.latent_channels)
    if not (scale.isfinite() & (scale > 0)).all():
        raise ConfigError(f"an autoencoder needs a scaling_factor > 0, got {config.scaling_factor}")
    return scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1)


def _numbers(config: Any, name: str, count: int) -> Float[Tensor, " C"]:
    """So many finite numbers of a config; an entry that is not there, or null, is 0."""
    value = getattr(config, name, None) or 0.0
    values = value if isinstance(value, list | tuple) else [value]
    plain = [v if isinstance(v, int | float) else math.nan for v in values]
    numbers = torch.tensor(plain, dtype=torch.float32)
    if len(values) != count or not numbers.isfinite().all():
        raise ConfigError(
            f"{name} of an autoencoder must be {count} finite number{'s' * (count > 1)}, got "
            f"{printable(value, 80)}"
        )
    return numbers


def _is_tiny(model: nn.Module) -> bool:
    """Whether it is an AutoencoderTiny, by name: a model of pixels imports no diffusers."""
    return any(cls.__name__ == "AutoencoderTiny" for cls in type(model).__mro__)
