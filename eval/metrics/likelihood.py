"""Bits per dimension: how well a model with a likelihood predicts real images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from genlab.data.pixels import from_uint8
from genlab.errors import EvaluationError
from genlab.eval.metrics.base import LikelihoodMetric, ScoreInfo
from genlab.eval.samples import StoredImages
from genlab.generators.base import Generator


@dataclass(frozen=True, kw_only=True)
class BitsPerDimension(LikelihoodMetric):
    """The mean negative log-likelihood of real images, in bits for each channel of each pixel.

    8 is what a model pays that knows nothing of 8-bit images.
    """

    scores = (ScoreInfo("bpd", lower_is_better=True),)

    def __call__(self, bits: Float[Tensor, " N"]) -> dict[str, float]:
        """Compute ``bpd``."""
        finite = bits.isfinite()
        if not finite.all():
            raise EvaluationError(
                f"the likelihood of real image {int((~finite).nonzero()[0])} is not finite; check "
                "that the images have the model's range and size"
            )
        return {"bpd": float(bits.double().mean())}


@torch.no_grad()
def likelihoods(
    generator: Generator,
    images: StoredImages,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> Float[Tensor, " N"]:
    """Bits per dimension of every image under a model.

    Args:
        generator: of a family with a likelihood
            (`genlab.generators.base.Generator.bits_per_dimension`); grey models look at the first
            channel.
        images: with labels, where the model is class-conditional.
        batch_size: images at a time.
        on_progress: called with (images just done, images in all).

    Raises:
        ConfigError: the model's family has no likelihood.
    """
    bits = []
    for start in range(0, images.count, batch_size):
        stop = min(images.count, start + batch_size)
        pixels = images.read(start, stop).images[:, : generator.image_shape[0]]
        labels = None
        if generator.num_classes and images.labels is not None:
            labels = images.labels[start:stop].tolist()
        batch = generator.bits_per_dimension(from_uint8(pixels.to(generator.device)), labels)
        bits.append(batch.cpu())
        on_progress(stop - start, images.count)
    return torch.cat(bits)
