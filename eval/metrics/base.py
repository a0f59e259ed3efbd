"""The two kinds of metric: of features of images, and of a model's likelihood of real images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from typing_extensions import override

from genlab.errors import EvaluationError
from genlab.eval.extractors.base import FeatureExtractor
from genlab.eval.metrics.registry import METRICS
from genlab.eval.metrics.scores import ScoreInfo
from genlab.eval.moments import Moments

__all__ = [
    "METRICS",
    "FeatureMetric",
    "FeatureSet",
    "LikelihoodMetric",
    "Metric",
    "Need",
    "ScoreInfo",
]


class Need(NamedTuple):
    """One thing that a metric reads of a set of images.

    Attributes:
        what: ``moments`` (count, mean and covariance: memory does not grow with the images),
            ``rows`` (the features themselves), ``labels``, or ``images`` (uint8).
        output: which output of the extractor, for moments and rows.
    """

    what: Literal["moments", "rows", "labels", "images"]
    output: str = ""


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """What was collected of one set of images, in the order of the images.

    Attributes:
        count: images in the set.
        moments: output -> moments in float64.
        rows: output -> (N, d) float32; a reference may keep the rows of some images only.
        labels: one for each row, or None where the images have none.
        class_names: of the labels, ``class_names[label]``, or None.
        logit_names: of the columns of the rows ``logits``, or None.
        images: (N, C, H, W), where a metric asked for them.
    """

    count: int
    moments: Mapping[str, Moments] = field(default_factory=dict)
    rows: Mapping[str, Float[Tensor, "N _"]] = field(default_factory=dict)
    labels: Int64[Tensor, " N"] | None = None
    class_names: tuple[str, ...] | None = None
    logit_names: tuple[str, ...] | None = None
    images: UInt8[Tensor, "N C H W"] | None = None


class Metric(ABC):
    """What both kinds have in common; derive from `FeatureMetric` or `LikelihoodMetric`.

    A metric is a frozen, keyword-only dataclass. Its fields are its options: they can be set in a
    configuration, and stand on the protocol card, so that scores with other options are not ranked
    together. All else is constant and stands in class attributes. The same input must give the same
    scores: a metric that draws random numbers has the seed among its options.

    It is registered under the entry point ``genlab.metrics``, or from a running program by
    ``@METRICS.register("mine")``.

    Attributes:
        scores: all that it can give, in the order in which tables show them. Written as a plain
            tuple of ``ScoreInfo(...)``, it can be read without importing the module.
    """

    scores: ClassVar[tuple[ScoreInfo, ...]]

    @abstractmethod
    def score_name(self, score: str, extractor: FeatureExtractor) -> str:
        """The name under which a score is shown and recorded.

        Args:
            score: plain name.
            extractor: that looks at the images.

        Raises:
            EvaluationError: the metric does not declare it.
        """

    def settings(self) -> dict[str, Any]:
        """The options, for the protocol card."""
        return dict(vars(self))

    def _declared(self, score: str) -> ScoreInfo:
        for info in self.scores:
            if info.name == score:
                return info
        names = ", ".join(info.name for info in self.scores)
        raise EvaluationError(
            f"the metric gives the score {score!r} and declares only {names}; add it to the "
            f"scores of {type(self).__name__}"
        )


class FeatureMetric(Metric):
    """A few numbers that compare samples with a reference, or judge samples alone, by features.

    >>> import torch
    >>> @dataclass(frozen=True, kw_only=True)
    ... class MeanDistance(FeatureMetric):
    ...     '''The p-norm of the difference of both means.'''
    ...
    ...     scores = (ScoreInfo("mean-distance", lower_is_better=True),)
    ...     needs = (Need("moments", "features"),)
    ...     reference_needs = (Need("moments", "features"),)
    ...
    ...     p: float = 2.0
    ...
    ...     def __call__(self, samples, reference):
    ...         a, b = samples.moments["features"], reference.moments["features"]
    ...         return {"mean-distance": float((a.mean - b.mean).norm(self.p))}
    >>> zeros, ones = (
    ...     FeatureSet(count=5, moments={"features": Moments.of(torch.full((5, 4), value))})
    ...     for value in (0.0, 1.0)
    ... )
    >>> MeanDistance()(zeros, ones)
    {'mean-distance': 2.0}

    `genlab.eval.metrics.checks` has the checks that such metrics share, with their sentences.

    Attributes:
        needs: what it reads of the samples.
        reference_needs: what it reads of the reference; empty: it judges the samples alone.
    """

    needs: ClassVar[tuple[Need, ...]]
    reference_needs: ClassVar[tuple[Need, ...]] = ()

    def check_counts(self, samples: int, reference: int | None) -> None:
        """Refuse numbers of images that cannot be scored, before one is drawn; by default none.

        Args:
            samples: how many there will be.
            reference: how many the reference has; None where that is not known yet, or has no part.

        Raises:
            EvaluationError: says how many it takes, or which option changes that.
        """
        return

    @abstractmethod
    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute.

        Args:
            samples: with all that `needs` names, on the CPU.
            reference: with all that `reference_needs` names, on the CPU; None where that is empty.

        Returns:
            Plain score name (``fd``, ``precision``) -> value, of declared scores only.

        Raises:
            EvaluationError: the sets do not fit, are too small, or hold values that are not finite.
        """

    @override
    def score_name(self, score: str, extractor: FeatureExtractor) -> str:
        """It tells the extractor (``fd[cnn-fmnist]``)."""
        return self._declared(score).full_name(extractor.name, extractor.official)


class LikelihoodMetric(Metric):
    """A few numbers made of a model's likelihood of real images; no extractor takes part.

    The reference should be a test set: the model is judged by images that it did not draw, and none
    are drawn.

    >>> import torch
    >>> @dataclass(frozen=True, kw_only=True)
    ... class WorstBits(LikelihoodMetric):
    ...     '''The bits per dimension of the least likely image.'''
    ...
    ...     scores = (ScoreInfo("worst-bits", lower_is_better=True),)
    ...
    ...     def __call__(self, bits):
    ...         return {"worst-bits": float(bits.max())}
    >>> WorstBits()(torch.tensor([2.5, 3.0]))
    {'worst-bits': 3.0}
    """

    @abstractmethod
    def __call__(self, bits: Float[Tensor, " N"]) -> dict[str, float]:
        """Compute.

        Args:
            bits: bits per dimension of each real image, in their order, on the CPU; infinite where
                the model holds an image for impossible.

        Returns:
            Plain score name -> value, of declared scores only.

        Raises:
            EvaluationError: there are too few, or some are not finite.
        """

    @override
    def score_name(self, score: str, extractor: FeatureExtractor) -> str:
        """The plain name, whatever the extractor."""
        return self._declared(score).name
