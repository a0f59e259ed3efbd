"""Detect copies of training images: previews are compared with their nearest neighbours.

A sample is a copy if its nearest training image is much nearer to it than the others around it:
nearer than ``ratio`` times its mean distance to the next ones. Measuring by its own surroundings
makes one rule serve flat and detailed images alike, and duplicates among the training images, which
are only some of those around, do not hide a copy. How many training images would be copies of each
other by the same rule is measured, too, and is what the samples' share is compared with.

Source: Carlini et al. 2023, arXiv:2301.13188, Section 5: L2 distance relative to the mean distance
to the 50 nearest, with 0.5. There the nearest itself is one of the 50, and sets are large.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from genlab.data.dataset import ImageDataset
from genlab.data.neighbours import nearest
from genlab.data.pixels import from_uint8, to_uint8
from genlab.data.points import Points
from genlab.data.sources.latents import LatentDataset
from genlab.data.writing.pictures import rows as rows_picture
from genlab.data.writing.pictures import write_grid
from genlab.finetuning.config import CopyingConfig
from genlab.generators.autoencoder import Autoencoder
from genlab.training.loop.evaluation import Score
from genlab.training.loop.preview import Preview
from genlab.training.loop.state import Progress

SURROUNDINGS, LEAST_SURROUNDINGS, SURROUNDING_SHARE = 50, 5, 5
"""Training images, behind the nearest, whose mean distance a sample is measured by: 50; of small
sets a fifth, since 50 of 60 would be all classes, but 5 at least."""

SIDE = 32
"""Larger images are averaged down to this height and width: copies are alike in the large."""

PROBES = 1000
"""Training images, evenly spaced over the set, that are compared with all the others."""

SHOWN = 16
"""Pairs in a picture."""


class CopyingWarning(UserWarning):
    """A model begins to copy its training images."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """How near images lie to training images.

    Attributes:
        distances: root mean square difference to the nearest one.
        ratios: the same as a share of the mean distance to the next ones, see `SURROUNDINGS`; nan
            where there are no others.
        images: which training image is the nearest.
    """

    distances: Float64[Tensor, " N"]
    ratios: Float64[Tensor, " N"]
    images: Int64[Tensor, " N"]

    def copies(self, ratio: float) -> Bool[Tensor, " N"]:
        """Which images are copies."""
        return self.ratios < ratio


class TrainingImages:
    """Training images, ready to be compared with; 50,000 of 32x32 RGB take 150 MB.

    Args:
        rows: one image each, of `pixel_rows` or of latents.
        scale: that a difference of 1 is divided by.
    """

    def __init__(self, rows: UInt8[Tensor, "N d"] | Float[Tensor, "N d"], scale: float) -> None:
        # Bytes stay bytes: a block of them becomes float32 when it is used.
        self.points = Points(rows, keep=rows.dtype != torch.uint8)
        self.unit = scale * rows.shape[1] ** 0.5

    def __len__(self) -> int:
        return len(self.points)

    def compare(self, rows: UInt8[Tensor, "M d"] | Float[Tensor, "M d"]) -> Nearest:
        """Find the nearest training image of each row."""
        return self._compare(rows, skip=0)

    def among_themselves(self) -> Nearest:
        """The same of up to `PROBES` training images and all the others.

        Raises:
            EvaluationError: there is only one.
        """
        count = min(len(self), PROBES)
        return self._compare(self.points.rows[torch.arange(count) * len(self) // count], skip=1)

    def _compare(self, rows: Tensor, skip: int) -> Nearest:
        """Leave out the first neighbours: a training image is its own."""
        count = max(LEAST_SURROUNDINGS, min(SURROUNDINGS, len(self) // SURROUNDING_SHARE))
        others = max(0, min(count, len(self) - skip - 1))
        queries = Points(rows, self.points.centre)
        neighbours = nearest(queries, self.points, skip + 1 + others)
        distances = neighbours.squared.sqrt() / self.unit
        return Nearest(
            distances=distances[:, skip],
            ratios=distances[:, skip] / distances[:, skip + 1 :].mean(1),
            images=neighbours.points[:, skip],
        )


def pixel_rows(pixels: UInt8[Tensor, "N C H W"]) -> UInt8[Tensor, "N d"]:
    """Images as rows, averaged down to `SIDE` where they are larger."""
    if max(pixels.shape[2:]) <= SIDE:
        return pixels.flatten(1)
    parts = []
    for part in pixels.split(1024):
        small = F.adaptive_avg_pool2d(part.float(), SIDE)
        parts.append(small.round().to(torch.uint8).flatten(1))
    return torch.cat(parts)


class CopyingCheck:
    """Compares the previews of a run with its training images.

    Values in the log: ``nearest_distance``, the mean root mean square difference of a preview to
    its nearest training image (of pixels, where 1 is black against white; of latents in their own
    units); ``nearest_ratio``, that over the same of training images among themselves: about 1
    where the model draws new images, towards 0 where it copies; ``copies``, the share of previews
    that are copies. Beside each preview stands a picture of the pairs, the nearest first.

    Args:
        dataset: of the run.
        config: what a copy is.
        autoencoder: of a run on latents, where latents are compared.

    Training images are read and compared with each other at the first preview.
    """

    scores: Mapping[str, Score] = {
        "nearest_distance": Score(form=".4f", higher_is_better=True),
        "nearest_ratio": Score(form=".2f", higher_is_better=True),
        "copies": Score(form=".0%"),
    }

    def __init__(
        self,
        dataset: ImageDataset | LatentDataset,
        config: CopyingConfig,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        self.dataset, self.config, self.autoencoder = dataset, config, autoencoder
        self._images: TrainingImages | None = None
        self._own_distance = self._own_copies = 0.0
        self._warned = False

    def __call__(self, preview: Preview, progress: Progress) -> dict[str, float]:
        """Compare, draw, and warn once where too many previews are copies."""
        images = self._training_images()
        nearest_images = images.compare(self._rows_of(preview.pixels))
        path = preview.path.with_name(f"{preview.path.stem}-nearest.png")
        self._draw(preview, nearest_images, path)
        values = {"nearest_distance": float(nearest_images.distances.mean())}
        if self._own_distance > 0:
            values["nearest_ratio"] = values["nearest_distance"] / self._own_distance
        if len(images) > 2:  # else there are no surroundings, or those of one image
            copies = nearest_images.copies(self.config.ratio)
            values["copies"] = float(copies.double().mean())
            if values["copies"] > self.config.warn_share + self._own_copies and not self._warned:
                self._warn(int(copies.sum()), len(copies), path, progress)
        return values

    def _training_images(self) -> TrainingImages:
        if self._images is None:
            stored, _ = self.dataset.load_all()
            if isinstance(self.dataset, LatentDataset):
                means = stored[:, : self.dataset.image_shape[0]]
                self._images = TrainingImages(means.flatten(1).float(), 1.0)
            else:
                self._images = TrainingImages(pixel_rows(stored), 255.0)
            if len(self._images) > 1:
                among = self._images.among_themselves()
                self._own_distance = float(among.distances.mean())
                self._own_copies = float(among.copies(self.config.ratio).double().mean())
        return self._images

    def _rows_of(self, pixels: UInt8[Tensor, "N C H W"]) -> Tensor:
        if not isinstance(self.dataset, LatentDataset):
            return pixel_rows(pixels)
        assert self.autoencoder is not None, "latents come with an autoencoder"
        images = from_uint8(pixels).to(self.autoencoder.device)
        return self.autoencoder.encode(images).mean.flatten(1).float().cpu()

    def _draw(self, preview: Preview, nearest_images: Nearest, path: Path) -> None:
        """The previews nearest to training images above these, with how near they are."""
        order = nearest_images.ratios.nan_to_num(0).argsort()[:SHOWN].tolist()
        shown = _tiles(preview.pixels[order])
        training = _tiles(self._pixels([int(nearest_images.images[index]) for index in order]))
        captions = [f"{float(nearest_images.ratios[index]):.2f}" for index in order]
        write_grid(path, rows_picture({"sample": shown, "nearest": training}, captions))

    def _pixels(self, numbers: Sequence[int]) -> UInt8[Tensor, "N C H W"]:
        stored = torch.stack([self.dataset[number][0] for number in numbers])
        if stored.dtype == torch.uint8:
            return stored
        assert self.autoencoder is not None
        means = stored[:, : self.dataset.image_shape[0]].float().to(self.autoencoder.device)
        return to_uint8(self.autoencoder.decode(means).float().cpu())

    def _warn(self, copies: int, count: int, path: Path, progress: Progress) -> None:
        self._warned = True
        warnings.warn(
            f"after {progress.images:,} images {copies} of {count} previews are nearly a training "
            f"image ({path} shows the pairs): the model copies its training images; stop here and "
            "take an earlier snapshot, train fewer parameters (diffit, bitfit, class-table), or "
            "give more images",
            CopyingWarning,
            stacklevel=2,
        )


def _tiles(pixels: UInt8[Tensor, "N C H W"]) -> list[Any]:
    return list(pixels.permute(0, 2, 3, 1).numpy())
