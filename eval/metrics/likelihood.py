"""Bits per dimension: how well a model with a likelihood predicts real images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.data.pixels import from_uint8
from genlab.errors import EvaluationError
from genlab.eval.metrics.base import LIKELIHOOD, FeatureSet, Metric, Need
from genlab.eval.samples import StoredImages
from genlab.generators.base import Generator


@dataclass(frozen=True, kw_only=True)
class BitsPerDimension(Metric):
    """The mean negative log-likelihood of real images, in bits for each channel of each pixel.

    It judges the model by images that it did not draw, so the reference should be a test set; 8 is
    what a model pays that knows nothing of 8-bit images. For families whose generators tell a
    likelihood (`genlab.generators.base.Generator.bits_per_dimension`).
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    reference_needs: ClassVar[tuple[Need, ...]] = (Need("likelihood"),)
    cost: ClassVar[Literal["moments", "features", "training"]] = "training"

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``bpd``."""
        assert reference is not None
        bits = reference.rows[LIKELIHOOD].double()
        if not bits.isfinite().all():
            bad = int((~bits.isfinite()).flatten().nonzero()[0])
            raise EvaluationError(
                f"the likelihood of real image {bad} is not finite; check that the images have the "
                "model's range and size"
            )
        return {"bpd": float(bits.mean())}


@torch.no_grad()
def likelihoods(
    generator: Generator,
    images: StoredImages,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> Float[Tensor, " N"]:
    """Bits per dimension of every image under a model.

    Args:
        generator: of a family with a likelihood; grey models look at the first channel.
        images: with labels, where the model is class-conditional.
        batch_size: images at a time.
        on_progress: called with (images just done, images in all).

    Raises:
        ConfigError: the model's family has no likelihood.
    """
    found = []
    for start in range(0, images.count, batch_size):
        stop = min(images.count, start + batch_size)
        pixels = images.read(start, stop).images[:, : generator.image_shape[0]]
        labels = None
        if generator.num_classes and images.labels is not None:
            labels = images.labels[start:stop].tolist()
        bits = generator.bits_per_dimension(from_uint8(pixels.to(generator.device)), labels)
        found.append(bits.cpu())
        on_progress(stop - start, images.count)
    return torch.cat(found)
