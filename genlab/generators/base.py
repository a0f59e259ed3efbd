"""One interface for every family: a generator turns seeds and labels into images."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab import compute
from genlab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What `Generator.stream` yields; files, evaluation and notebooks all drain it.

    Attributes:
        images: (B, C, H, W), float32 in [-1, 1] up to overshoot (quantising clips), on the
            generator's device.
        seeds: the seed of each image.
        labels: the class of each image, or None for an unconditional generator.
        nfe: network evaluations for each image of this batch (guided steps count every network
            call).
        seconds: wall-clock time of the batch, the device included.
    """

    images: Float[Tensor, "B C H W"]
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    nfe: int
    seconds: float


SamplerLike = str | Mapping[str, Any] | None
"""A preset's name, a (partial) sampler config, or None for the generator's own default."""


class Generator(ABC):
    """A model that turns seeds and labels into images.

    Attributes:
        family: ``diffusion``, ``gan`` or ``autoregressive``.
        image_shape: (C, H, W).
        num_classes: 0 for an unconditional model.
        class_names: one name a class, or None where nobody named them.
        network: the plain network, as in its paper.
        sampler: the whole sampler config that this model is sampled with by default.
    """

    family: ClassVar[str]
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None
    network: nn.Module
    sampler: dict[str, Any]

    @abstractmethod
    def stream(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        sampler: SamplerLike = None,
        batch_size: int = 16,
        on_step: Callable[[Any], None] | None = None,
    ) -> Iterator[Batch]:
        """Sample batch by batch.

        Args:
            seeds: one for each image; the same seed gives the same image whatever the batch size.
            labels: one class index for each seed; None draws each sample's class from its own
                stream.
            sampler: how to sample; None is the generator's own default.
            batch_size: images at a time; it changes speed and memory, never the images.
            on_step: called after each solver step with the step (see `genlab.samplers.base.Step`).

        Raises:
            LabelError: a label is out of range, or their number is not that of the seeds.
        """

    @abstractmethod
    def build_sampler(self, sampler: SamplerLike = None) -> Any:
        """Make what `stream` runs, refusing settings that are wrong or do not fit this model."""

    def bits_per_dimension(
        self, images: Float[Tensor, "B C H W"], labels: Sequence[int] | None = None
    ) -> Float[Tensor, " B"]:
        """How many bits the model needs for each channel of each pixel of given images.

        Args:
            images: 8-bit images, as floats in [-1, 1].
            labels: one class for each image; None for an unconditional model.

        Raises:
            ConfigError: the family has no likelihood.
        """
        raise ConfigError(
            f"a generator of the family {self.family!r} tells no likelihood; bits per dimension "
            "need an autoregressive model"
        )

    def sample(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        sampler: SamplerLike = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """All images at once: float32 (N, C, H, W) in [-1, 1], on the generator's device."""
        size = batch_size or max(1, min(len(seeds), 64))
        return torch.cat([b.images for b in self.stream(seeds, labels, sampler, size)]).clamp(-1, 1)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Generator":
        """Move the generator.

        Args:
            device: None stays where it is.
            dtype: what the network computes in; parts that need float32 keep it. None changes
                nothing.

        Raises:
            ConfigError: there is no such device.
        """
        if device is not None:
            try:
                self.network.to(torch.device(device))
            except (
                RuntimeError,
                AssertionError,
            ) as error:  # torch raises either for a missing device
                raise ConfigError(
                    f"cannot use the device {str(device)!r}: {str(error).splitlines()[0]}; "
                    "genlab doctor lists the devices"
                ) from error
        if dtype is not None:
            kept = getattr(self.network, "_keep_in_fp32_modules", None) or ()
            for name, part in self.network.named_children():
                if name not in kept:
                    part.to(dtype)
        return self

    def compile(self) -> "Generator":
        """Compile the network: the first batch of a size takes minutes, later ones are faster."""
        self.prepare()
        self.network.compile()
        return self

    def prepare(self) -> None:
        """Switch training's behaviour off and lay the network out as its device likes it best."""
        self.network.eval()
        compute.choose(self.device).prepare(self.network)

    def weights_sha256(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights: a model's identity."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """All that the network does not know itself, as ``model_index.json`` holds it."""

    @abstractmethod
    def save_pretrained(self, folder: Path | str) -> None:
        """Write the folder that `genlab.load` and the pipeline read; safetensors and JSON only."""
