"""Where the images to evaluate come from: files on disk, or a generator that draws them.

Both are cut into the same numbered batches whoever asks, so that a batch is composed alike in one
process or many, before and after an interruption.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from typing_extensions import override

from genlab.data.conform import Wording, pad
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import to_uint8
from genlab.data.sources.opening import open_source
from genlab.errors import DataError, EvaluationError, SamplingError
from genlab.files import content_sha256, text_sha256
from genlab.generators.base import Generator
from genlab.generators.costs import Costs
from genlab.generators.latents import check_draws_images
from genlab.samplers.base import AnySampler
from genlab.samplers.tallies import Tallies

SETTINGS = Wording(has_fit=False)
"""How the settings of an evaluation are written: images are scored at the size that they have."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One batch of images.

    Attributes:
        images: (B, 3, H, W), RGB, 0 to 255; grey images have three equal channels.
        nfe: network evaluations for each image; 0 for images that were read.
        seconds: that drawing them took.
        costs: of a stitched run, what each of its models cost.
        tallies: what the sampler counted beside evaluations.
    """

    images: UInt8[Tensor, "B 3 H W"]
    nfe: int = 0
    seconds: float = 0.0
    costs: Costs = field(default_factory=dict)
    tallies: Tallies = field(default_factory=dict)


class Samples(ABC):
    """A set of images in a fixed order.

    Attributes:
        count: of images.
        image_shape: (C, H, W) as the source has them; C is 1 or 3.
        labels: (N,), or None where the images have none.
        class_names: or None where the classes have none.
    """

    count: int
    image_shape: tuple[int, int, int]
    labels: Int64[Tensor, " N"] | None
    class_names: tuple[str, ...] | None

    @abstractmethod
    def read(self, start: int, stop: int) -> Drawn:
        """The images ``start`` ... ``stop - 1``."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that the images depend on, as JSON: equal identities mean equal images."""


class StoredImages(Samples):
    """Images in a folder, zip, npz or idx files.

    Args:
        path: see `genlab.data.sources.opening.open_source`.
        image_size: height and width wanted; None keeps that of the first image.
        fit: what to do with images of another size: ``none`` refuses them; see `Conform`.
        split: which part, where there are several.
        alpha: what to do with transparency, see `Conform`.
        wording: how messages name these settings.
        class_names: of labels whose classes the files do not name.

    Attributes:
        split: the part that was read; None where the set has no parts.

    Raises:
        DataError: nothing there, images of different sizes, or transparent ones.
    """

    def __init__(
        self,
        path: Path | str,
        image_size: int | None = None,
        fit: str = "none",
        split: str = "train",
        alpha: str = "refuse",
        wording: Wording = SETTINGS,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self._options: dict[str, Any] = {"image_size": image_size, "fit": fit, "split": split}
        if alpha != "refuse":  # the keys of sets without it stay what they were
            self._options["alpha"] = alpha
        source = open_source(self.path, split)
        has_labels, self.split, self._wording = source.labels is not None, source.split, wording
        self._dataset = ImageDataset(source, labels=has_labels, wording=wording, **self._options)
        self.count = len(self._dataset)
        self.image_shape = self._dataset.image_shape
        self.labels = self._dataset.labels if has_labels else None
        stored_names = None if class_names is None or self.labels is None else tuple(class_names)
        self.class_names = self._dataset.class_names or stored_names
        if self.image_shape[0] not in (1, 3):
            raise DataError(
                f"{path} has images with {self.image_shape[0]} channels; 1 or 3 can be scored"
            )

    @override
    def read(self, start: int, stop: int) -> Drawn:
        images = torch.stack([self._dataset[i][0] for i in range(start, stop)])
        return Drawn(images=as_rgb(images))

    @override
    def identity(self) -> dict[str, Any]:
        """It reads every file once."""
        return {"data_sha256": content_sha256(self.path), **self._options}

    def at(self, image_size: int, fit: str = "none") -> "StoredImages":
        """The same images at another size; ``none`` takes those that are of this size as they lie.

        Raises:
            DataError: they are not, and ``fit`` says nothing about it.
        """
        options = {**self._options, "image_size": image_size, "fit": fit}
        names = self.class_names
        return StoredImages(self.path, wording=self._wording, class_names=names, **options)


class GeneratedImages(Samples):
    """Images that a generator draws when they are read.

    Args:
        generator: on its device.
        seeds: one for each image.
        labels: one class for each seed; None for an unconditional model.
        sampler: what `Generator.build_sampler` made.
        dtype: what the network computes in, as it stands on the card.
        image_size: height and width at which the images are looked at: smaller ones are centred on
            black, as `Conform` pads those of a data set. None keeps the generator's.

    Raises:
        ConfigError: the generator draws latents.
        EvaluationError: its images are neither grey nor RGB.
    """

    def __init__(
        self,
        generator: Generator,
        seeds: Sequence[int],
        labels: Sequence[int] | None,
        sampler: AnySampler,
        dtype: str = "float32",
        image_size: int | None = None,
    ) -> None:
        check_draws_images(generator, "scores are those of images")
        self.generator, self.seeds, self.sampler, self.dtype = generator, seeds, sampler, dtype
        self.count = len(seeds)
        channels, height, width = generator.image_shape
        self.image_shape = (channels, image_size or height, image_size or width)
        self.class_names = generator.class_names
        self.labels = None if labels is None else torch.tensor(labels)
        if self.image_shape[0] not in (1, 3):
            raise EvaluationError(
                f"the model draws {self.image_shape[0]} channels; only grey and RGB images can "
                "be scored"
            )

    @override
    def read(self, start: int, stop: int) -> Drawn:
        seeds = self.seeds[start:stop]
        labels = None if self.labels is None else self.labels[start:stop].tolist()
        batch = self.generator.draw(seeds, labels, self.sampler)
        finite = batch.images.isfinite().flatten(1).all(1).tolist()
        bad = [seed for seed, good in zip(seeds, finite, strict=True) if not good]
        if bad:
            raise SamplingError(
                f"{len(bad)} images are not finite (first seed {bad[0]}); try --dtype float32, a "
                "smaller guidance scale, or check the model's weights"
            )
        images = as_rgb(to_uint8(batch.images))
        if images.shape[2:] != self.image_shape[1:]:
            images = torch.from_numpy(pad(images.cpu().numpy(), self.image_shape[1])).to(
                images.device
            )
        return Drawn(
            images=images,
            nfe=batch.nfe,
            seconds=batch.seconds,
            costs=batch.costs,
            tallies=batch.tallies,
        )

    @override
    def identity(self) -> dict[str, Any]:
        labels = None if self.labels is None else self.labels.tolist()
        return {
            "weights_sha256": self.generator.weights_sha256(),
            **self.generator.identity(self.sampler),
            "sampler": dict(self.sampler.config),
            "dtype": self.dtype,
            "seeds_sha256": text_sha256([list(self.seeds), labels]),
            "image_shape": list(self.image_shape),
        }


def as_rgb(images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Grey images with their channel three times; RGB images as they are."""
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
