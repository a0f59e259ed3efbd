"""The contract of a metric: what it needs of both sets of images, and what it makes of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from genlab.eval.moments import Moments
from genlab.registry import Registry

LIKELIHOOD = "likelihood"


class Need(NamedTuple):
    """One thing that a metric reads of a set of images.

    Attributes:
        what: ``moments`` (count, mean and covariance: memory does not grow with the images),
            ``rows`` (the features themselves), ``labels``, ``images`` (uint8), or ``likelihood``
            (bits per dimension of real images under the model, as rows of that name).
        output: which output of the extractor, for moments and rows.
    """

    what: Literal["moments", "rows", "labels", "images", "likelihood"]
    output: str = ""


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """What was collected of one set of images, in the order of the images.

    Attributes:
        count: images in the set.
        moments: output -> moments in float64.
        rows: output -> (N, d) float32; a reference may keep the rows of some images only.
        labels: one for each row, or None where the images have none.
        images: (N, C, H, W), where a metric asked for them.
    """

    count: int
    moments: Mapping[str, Moments] = field(default_factory=dict)
    rows: Mapping[str, Float[Tensor, "N _"]] = field(default_factory=dict)
    labels: Int64[Tensor, " N"] | None = None
    images: UInt8[Tensor, "N C H W"] | None = None


class Metric(ABC):
    """A number, or a few, that compare samples with a reference or judge samples alone.

    Options are fields of the (frozen, keyword-only) dataclass that implements it; they stand on the
    protocol card.

    Attributes:
        needs: what it reads of the samples.
        reference_needs: what it reads of the reference; empty: it judges the samples alone.
        cost: ``moments`` (one pass, bounded memory), ``features`` (all features in memory) or
            ``training`` (trains or runs another network).
    """

    needs: ClassVar[tuple[Need, ...]]
    reference_needs: ClassVar[tuple[Need, ...]] = ()
    cost: ClassVar[Literal["moments", "features", "training"]]

    @abstractmethod
    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute.

        Returns:
            Plain score name (``fd``, ``precision``) -> value; `score_name` makes the full one.

        Raises:
            EvaluationError: the sets do not fit, are too small, or hold values that are not finite.
        """

    def settings(self) -> dict[str, Any]:
        """The options, for the protocol card."""
        return dict(vars(self))


METRICS: Registry[type[Metric]] = Registry(
    "genlab.metrics",
    {
        "fd": "genlab.eval.metrics.frechet:FrechetDistance",
        "sfd": "genlab.eval.metrics.frechet:SpatialFrechetDistance",
        "cs": "genlab.eval.metrics.classifier_score:ClassifierScore",
        "kd": "genlab.eval.metrics.kernel:KernelDistance",
        "pr": "genlab.eval.metrics.manifold:PrecisionRecall",
        "dc": "genlab.eval.metrics.manifold:DensityCoverage",
        "vendi": "genlab.eval.metrics.diversity:Vendi",
        "similarity": "genlab.eval.metrics.diversity:MeanPairwiseSimilarity",
        "fd-infinity": "genlab.eval.metrics.frechet:FrechetDistanceInfinity",
        "nearest": "genlab.eval.metrics.memorisation:NearestTrainingImages",
        "consistency": "genlab.eval.metrics.classification:ClassConsistency",
        "cas": "genlab.eval.metrics.classification:ClassificationAccuracyScore",
        "bpd": "genlab.eval.metrics.likelihood:BitsPerDimension",
    },
)
"""Plain names; TF-GAN calls the Inception Score with other features classifier score, too."""

OFFICIAL_NAMES = {
    "fd": "fid",
    "sfd": "sfid",
    "cs": "is",
    "kd": "kid",
    "fd-infinity": "fid-infinity",
}
"""Score -> its name when, and only when, the extractor is the official Inception network."""

ALIASES = {official: plain for plain, official in OFFICIAL_NAMES.items()} | {"prdc": "pr,dc"}


def score_name(score: str, extractor_name: str, official: bool) -> str:
    """The name under which a score is shown and recorded.

    >>> score_name("fd", "inception", official=True)
    'fid'
    >>> score_name("fd", "cnn-fmnist", official=False)
    'fd[cnn-fmnist]'
    """
    head, dash, tail = score.partition("_")
    if head == "bpd":  # no extractor takes part
        return score
    if official:
        return OFFICIAL_NAMES.get(head, head) + dash + tail
    return f"{score}[{extractor_name}]"
