"""The order in which a run sees its images, and where they come from.

Step s takes the places s * B ... (s + 1) * B - 1 of an endless sequence of shuffled epochs. The
order depends on the seed alone, so it is the same after a resume and for any number of processes.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from genlab.choices import Alpha, Fit
from genlab.data.check.rules import empty_classes
from genlab.data.conform import TRAINING
from genlab.data.dataset import ImageDataset
from genlab.data.sources.base import Finding
from genlab.data.sources.latents import LatentDataset, is_latents
from genlab.errors import ConfigError
from genlab.training.config import DataConfig
from genlab.training.loop.seeds import generator


@dataclass(frozen=True, kw_only=True)
class DataMetadata:
    """What a network and a model card need to know of the data.

    Attributes:
        num_images: in the training set.
        image_shape: (C, H, W).
        num_classes: 0 without labels.
        class_names: or None where they have none.
        autoencoder: SHA-256 of the one that made the latents; None where the data are images.
    """

    num_images: int
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None
    autoencoder: str | None = None


class EpochOrder:
    """The endless sequence of image numbers.

    Args:
        num_images: in the set.
        seed: of the run.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images = num_images
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(
                num_images, generator=generator("cpu", seed, "epoch", epoch)
            )
        )

    def __call__(self, start: int, count: int) -> Int64[Tensor, " count"]:
        """The image numbers at the places ``start`` ... ``start + count - 1``."""
        parts = []
        while count:
            epoch, offset = divmod(start, self.num_images)
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)


@dataclass(frozen=True)
class Share:
    """The part of every batch that one process works on.

    A batch is cut into ``processes * rounds`` micro-batches of equal size. Their contents and their
    random numbers do not depend on who works on them, so two processes compute what one does in two
    rounds.

    Attributes:
        batch_size: of the whole step.
        processes: that train together.
        rank: of this one.
        rounds: micro-batches for each process.
    """

    batch_size: int
    processes: int
    rank: int
    rounds: int

    def __post_init__(self) -> None:
        if self.batch_size % (self.processes * self.rounds):
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be shared by {self.processes} processes in "
                f"{self.rounds} rounds (gradient_accumulation); make it a multiple of "
                f"{self.processes * self.rounds}"
            )

    @property
    def micro_size(self) -> int:
        """Images in a micro-batch."""
        return self.batch_size // (self.processes * self.rounds)

    def micro_batches(self) -> list[int]:
        """The numbers of this process's micro-batches within the batch."""
        return [round_ * self.processes + self.rank for round_ in range(self.rounds)]


Micro = tuple[UInt8[Tensor, "B C H W"] | Float16[Tensor, "B K H W"], Int64[Tensor, " B"]]


def open_dataset(config: DataConfig) -> ImageDataset | LatentDataset:
    """The images that a configuration names, or the latents that ``genlab data encode`` made.

    Raises:
        ConfigError: settings that latents have behind them already.
        DataError: the set cannot be read.
    """
    if not is_latents(config.path):
        return ImageDataset(
            config.path,
            image_size=config.image_size,
            channels=config.channels,
            fit=config.fit.value,
            labels=config.labels,
            split=config.split,
            alpha=config.alpha.value,
            wording=TRAINING,
        )
    done = {
        "image_size": None,
        "channels": None,
        "fit": Fit.none,
        "alpha": Alpha.refuse,
        "split": "train",
    }
    for name, left_out in done.items():
        if getattr(config, name) != left_out:
            raise ConfigError(
                f"data.{name} has no effect on latents, whose images were brought into shape when "
                f"{config.path} was encoded; leave it out"
            )
    return LatentDataset(config.path, labels=config.labels, wording=TRAINING)


def _warn(dataset: ImageDataset | LatentDataset) -> None:
    """Issue those warnings of ``genlab data check`` that need no image to be read."""
    findings: list[Finding] = []
    if isinstance(dataset, ImageDataset):
        findings += dataset.source.findings
    if dataset.num_classes:
        counts = np.bincount(dataset.labels.numpy(), minlength=dataset.num_classes)
        findings += empty_classes(counts, dataset.class_names)
    for finding in findings:
        if finding.level == "warning":
            warnings.warn(finding.message, stacklevel=3)


class Batches:
    """Where a run's images come from: memory if they fit, else worker processes.

    Args:
        config: of the data.
        seed: of the run.

    Raises:
        DataError: the set cannot be read.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        self.dataset = open_dataset(config)
        _warn(self.dataset)
        shape = self.dataset.image_shape
        if shape[1] != shape[2]:
            raise ConfigError(
                f"the images of {config.path} are {shape[2]}x{shape[1]}; networks take square "
                "ones, "
                "so set data.image_size and data.fit (pad, crop or resize)"
            )
        names = self.dataset.class_names
        self.metadata = DataMetadata(
            num_images=len(self.dataset),
            image_shape=shape,
            num_classes=self.dataset.num_classes,
            class_names=None if names is None else tuple(names),
            autoencoder=(
                self.dataset.metadata.autoencoder_sha256
                if isinstance(self.dataset, LatentDataset)
                else None
            ),
        )
        self.order = EpochOrder(len(self.dataset), seed)
        self.num_workers = config.num_workers
        self.memory_limit = round(config.max_memory_gib * 2**30)

    def first(self, count: int) -> Micro:
        """The first images of the run, up to ``count``, the same ones in every process."""
        rows = self.order(0, min(count, self.metadata.num_images)).tolist()
        pixels, labels = zip(*(self.dataset[row] for row in rows), strict=True)
        return torch.stack(pixels), torch.tensor(labels)

    def stream(self, first_step: int, last_step: int, share: Share) -> Iterator[Micro]:
        """This process's micro-batches from ``first_step`` up to, not including, ``last_step``."""
        places = _Places(self.order, first_step, last_step, share)
        if self.dataset.num_bytes <= self.memory_limit:
            images, labels = self.dataset.load_all()
            return ((images[rows], labels[rows]) for rows in map(torch.as_tensor, places))
        loader = DataLoader(
            self.dataset,
            batch_sampler=places,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Workers draw nothing; without a generator the loader would take a number from the
            # global one.
            generator=torch.Generator(),
        )
        return ((images, labels) for images, labels in loader)


class _Places(Sampler[list[int]]):
    """The rows of one process's micro-batches, one list after the other."""

    def __init__(self, order: EpochOrder, first_step: int, last_step: int, share: Share) -> None:
        self.order, self.share = order, share
        self.steps = range(first_step, last_step)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.share
        for step in self.steps:
            for number in share.micro_batches():
                start = step * share.batch_size + number * share.micro_size
                yield self.order(start, share.micro_size).tolist()

    def __len__(self) -> int:
        return len(self.steps) * self.share.rounds
