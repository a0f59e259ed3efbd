"""Memorisation: how near the samples come to training images, measured by the images themselves."""

from dataclasses import dataclass

from jaxtyping import Float, Float64, Int64
from torch import Tensor

from genlab.data.neighbours import nearest
from genlab.data.points import Points, together
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, Need, ScoreInfo
from genlab.eval.metrics.checks import check_width, checked_rows, rows_of


def nearest_images(
    samples: Float[Tensor, "N _"], reference: Float[Tensor, "M _"], k: int = 1
) -> tuple[Int64[Tensor, "N k"], Float64[Tensor, "N k"]]:
    """The reference images nearest to each sample, for a picture that shows them side by side.

    Args:
        samples: features.
        reference: features of the training images, from the same extractor.
        k: images for each sample.

    Returns:
        Their numbers in the reference, nearest first, and their Euclidean distances.

    Raises:
        EvaluationError: features are not finite, the widths differ, or the reference has fewer than
            k images.
    """
    checked_rows(samples, "samples")
    checked_rows(reference, "reference")
    check_width(samples.shape[1], reference.shape[1])
    neighbours = nearest(*together(samples, reference), k)
    return neighbours.points, neighbours.squared.sqrt()


@dataclass(frozen=True, kw_only=True)
class NearestTrainingImages(FeatureMetric):
    """Do samples lie nearer to training images than these lie to each other?

    For every sample the distance to the nearest reference image is taken, and for every reference
    image that to the nearest other one; give the training set as the reference.

    - ``nearest_ratio``: the mean distance of samples over that of reference images. About 1: the
      samples keep the distance that images of this kind keep. Well below 1: copies, or images
      simpler than the real ones, which lie close to anything. Above 1: samples beside the data.
    - ``nearest_share``: the share of samples nearer than the ``percentile``-th percentile of the
      distances within the reference. Without memorisation about that per cent of samples
      (0.01 for 1); copies of training images push it towards 1.

    Neither proves memorisation: look at the pairs (`nearest_images`). Duplicates in the reference
    make its own distances small, so clean it first. A sample set smaller than the reference is no
    trouble, a part of the reference is: the original of a copy may be missing.

    Source: the distances are those of the nearest-neighbour figures common since Goodfellow et al.
    2014; measuring them by the training set's own follows Meehan et al. 2020, arXiv:2004.05675,
    Section 3, with a plain share in place of their rank test and held-out set.

    Attributes:
        percentile: of the distances within the reference, above 0 and below 100.
    """

    percentile: float = 1.0

    scores = (
        ScoreInfo("nearest_ratio", lower_is_better=None),
        ScoreInfo("nearest_share", lower_is_better=None),
    )
    needs = (Need("rows", "features"),)
    reference_needs = (Need("rows", "features"),)

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100:
            raise ConfigError(f"percentile must lie between 0 and 100, got {self.percentile}")

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``nearest_ratio`` and ``nearest_share``."""
        real = rows_of(reference, "features", "reference")
        _, distances = nearest_images(rows_of(samples, "features", "samples", at_least=1), real)
        within = nearest(Points(real)).squared.sqrt()
        if not within.any():
            raise EvaluationError(
                "all images of the reference have a copy in it, so it gives no distance to measure "
                "by; remove duplicates from the reference"
            )
        # Of the lower neighbour, so that no distance in the reference is made up.
        rank = int(len(within) * self.percentile / 100)
        threshold = within.flatten().sort().values[rank]
        return {
            "nearest_ratio": float(distances.mean() / within.mean()),
            "nearest_share": float((distances < threshold).double().mean()),
        }
