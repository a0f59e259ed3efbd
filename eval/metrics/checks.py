"""Checks of the feature sets that metrics get, with their error messages."""

import warnings

from jaxtyping import Float
from torch import Tensor

from genlab.errors import EvaluationError
from genlab.eval.metrics.base import FeatureSet
from genlab.eval.moments import Moments


class EvaluationWarning(UserWarning):
    """A score can be computed, and its reader should know something about it."""


def warn(message: str) -> None:
    """Issue an `EvaluationWarning`."""
    # The frames in between are all ours; the message says what it is about.
    warnings.warn(message, EvaluationWarning, stacklevel=3)


def rows_of(
    features: FeatureSet | None, output: str, whose: str, at_least: int = 2
) -> Float[Tensor, "N d"]:
    """The rows that a metric needs.

    Args:
        features: a set of images.
        output: of the extractor.
        whose: ``samples`` or ``reference``, for messages.
        at_least: rows that the metric is defined for.

    Raises:
        EvaluationError: the set, its rows, or enough of them are missing; or some are not finite.
    """
    if features is None:
        raise EvaluationError(f"no {whose} given; this metric compares two sets of images")
    if output not in features.rows:
        raise EvaluationError(
            f"the {whose} carry no rows of {output!r}, only {', '.join(features.rows) or 'none'}; "
            "collect them from images, statistics alone are not enough"
        )
    return checked_rows(features.rows[output], whose, at_least)


def checked_rows(rows: Float[Tensor, "N d"], whose: str, at_least: int = 1) -> Float[Tensor, "N d"]:
    """The same rows, if there are enough and all are finite; see `rows_of`."""
    check_enough(len(rows), whose, at_least)
    # One quick pass; only sums that are not finite ask for a look at every number.
    finite = rows.sum(1).isfinite()
    if not finite.all():
        finite = rows.isfinite().all(1)
    if not finite.all():
        raise EvaluationError(
            f"the features of the {whose} are not finite in {int((~finite).sum())} of {len(rows)} "
            f"rows, first in row {int((~finite).nonzero()[0])}; check the images and the extractor"
        )
    return rows


def check_enough(count: int | None, whose: str, at_least: int) -> None:
    """Refuse too few images; see `FeatureMetric.check_counts`.

    Raises:
        EvaluationError: there are fewer than ``at_least``.
    """
    if count is not None and count < at_least:
        raise EvaluationError(
            f"this metric needs at least {at_least} {whose}, got {count}; give more images"
        )


def moments_of(features: FeatureSet | None, output: str, whose: str) -> Moments:
    """The moments that a metric needs.

    Raises:
        EvaluationError: the set or its moments are missing.
    """
    if features is None:
        raise EvaluationError(f"no {whose} given; this metric compares two sets of images")
    if output not in features.moments:
        available = ", ".join(features.moments) or "none"
        raise EvaluationError(
            f"the {whose} carry no mean and covariance of {output!r}, only {available}; "
            "make the statistics with an extractor that has this output"
        )
    return features.moments[output]


def check_width(samples: int, reference: int) -> None:
    """Refuse two sets that different extractors have seen.

    Raises:
        EvaluationError: the numbers of features differ.
    """
    if samples != reference:
        raise EvaluationError(
            f"the samples have {samples} features and the reference {reference}; both must come "
            "from the same extractor"
        )
