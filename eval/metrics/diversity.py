"""Diversity of samples alone: the Vendi score and mean pairwise similarity."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, Need, ScoreInfo
from genlab.eval.metrics.checks import checked_rows, rows_of

BLOCK = 1024
"""Rows that meet as many others at a time: 8 MiB of similarities in float64."""


def vendi_score(
    rows: Float[Tensor, "N d"],
    order: float = 1.0,
    weights: Float[Tensor, " _"] | None = None,
    *,
    normalise: bool = True,
) -> float:
    """The effective number of distinct samples: 1 (all alike) to N (all orthogonal).

    The exponential of the Rényi entropy of the eigenvalues of ``K / N`` (Shannon's at order 1),
    where ``K`` holds the cosine similarities. ``X^T X / N``, d x d, has the same eigenvalues beside
    zeros, and is taken where it is the smaller one.

    The authors' package disagrees with itself: its ``score_X`` ignores the order and always takes
    1, ``score_K`` and ``score_dual`` honour it; below order 1 these two differ by rounding (about
    1e-7 at order 0.5), since powers below 1 enlarge the rounding errors in place of zero
    eigenvalues. Here eigenvalues that are zero to working precision are left out.

    Args:
        rows: features, at least one row, none of zeros.
        order: 0 or larger, ``inf`` included; small orders give more weight to rare kinds.
        weights: probabilities of the rows, summing to 1; None is equal ones.
        normalise: whether to scale rows to length 1; without it the similarities are scalar
            products, and the eigenvalues are taken as they are, whatever their sum.

    Raises:
        EvaluationError: rows are not finite or zero, or the weights do not fit.

    Source: Friedman and Dieng 2022, arXiv:2210.02410, Eqs. 2 and 3; orders and weights: Pasarkar
    and Dieng 2023, arXiv:2310.12952, Eq. 3.
    """
    X = _unit_rows(rows) if normalise else checked_rows(rows, "samples").double()
    scaled = X * _probabilities(weights, X).sqrt()[:, None]
    gram = scaled.T @ scaled if X.shape[0] > X.shape[1] else scaled @ scaled.T
    return _hill_number(torch.linalg.eigvalsh(gram), order)


def vendi_score_of_kernel(
    K: Float[Tensor, "N N"],
    order: float = 1.0,
    weights: Float[Tensor, " _"] | None = None,
    *,
    normalise: bool = False,
) -> float:
    """`vendi_score` of similarities of any kind.

    Args:
        K: symmetric and positive semidefinite, with ones on the diagonal.
        order: see `vendi_score`.
        weights: see `vendi_score`.
        normalise: whether to divide by the roots of the diagonal first, so that it is one.
    """
    K = checked_rows(K, "similarities").double()
    if normalise:
        scale = K.diagonal().rsqrt()
        K = K * torch.outer(scale, scale)
    roots = _probabilities(weights, K).sqrt()
    return _hill_number(torch.linalg.eigvalsh(K * torch.outer(roots, roots)), order)


def mean_pairwise_similarity(rows: Float[Tensor, "N d"], *, diagonal: bool = False) -> float:
    """The mean cosine similarity of pairs, in O(N d): ``|sum of unit rows|^2`` holds all pairs.

    Args:
        rows: features, at least two rows, none of zeros.
        diagonal: whether each row's similarity to itself, 1, counts as a pair.
    """
    X = _unit_rows(rows, at_least=2)
    n = len(X)
    total = float(X.sum(0).square().sum())
    return total / n**2 if diagonal else (total - n) / (n * (n - 1))


def internal_diversity(rows: Float[Tensor, "N d"], order: int = 1) -> float:
    """One less the mean of ``K^order`` over all pairs of ``K``, the cosine similarities (IntDiv).

    At order 1 that is one less the mean similarity with the diagonal. So has it the Vendi score's
    package; Benhenda 2017, arXiv:1708.08227, has the root of the mean beyond order 1.

    Args:
        rows: features, at least one row, none of zeros.
        order: a positive integer.
    """
    if order < 1:
        raise ConfigError(f"order must be at least 1, got {order}")
    X = _unit_rows(rows)
    total = sum(float((block @ X.T).pow_(order).sum()) for block in X.split(BLOCK))
    return 1 - total / len(X) ** 2


def _unit_rows(rows: Float[Tensor, "N d"], at_least: int = 1) -> Float64[Tensor, "N d"]:
    rows = checked_rows(rows, "samples", at_least).double()
    zero = (rows == 0).all(1)
    if zero.any():
        raise EvaluationError(
            f"{int(zero.sum())} of {len(rows)} samples have features of zeros, first in row "
            f"{int(zero.nonzero()[0])}: they have no cosine similarity; check the extractor"
        )
    return F.normalize(rows, eps=0.0)


def _probabilities(weights: Tensor | None, rows: Tensor) -> Float64[Tensor, " N"]:
    if weights is None:
        return rows.new_full((len(rows),), 1 / len(rows))
    p = weights.to(rows)
    if (
        p.shape != (len(rows),)
        or not (p >= 0).all()
        or not math.isclose(float(p.sum()), 1, rel_tol=1e-6)
    ):
        raise EvaluationError(
            f"weights must be {len(rows)} probabilities that sum to 1, got {len(p)} with sum "
            f"{float(p.sum()):.6g}"
        )
    return p


def _hill_number(eigenvalues: Float64[Tensor, " n"], order: float) -> float:
    """The exponential of the Rényi entropy of the positive eigenvalues."""
    if not order >= 0:
        raise ConfigError(f"order must be at least 0, got {order}")
    floor = len(eigenvalues) * 2.0**-52 * float(eigenvalues[-1])
    p = eigenvalues[eigenvalues > floor]
    if order == 1:
        return float(torch.exp(-(p * p.log()).sum()))
    if math.isinf(order):
        return float(1 / p[-1])
    return float(p.pow(order).sum() ** (1 / (1 - order)))


@dataclass(frozen=True, kw_only=True)
class Vendi(FeatureMetric):
    """The Vendi score: the effective number of distinct samples; higher is more diverse.

    It grows with the number of samples: compare equal numbers. See `vendi_score`.

    Attributes:
        order: of the entropy.
    """

    order: float = 1.0

    scores = (ScoreInfo("vendi", lower_is_better=False),)
    needs = (Need("rows", "features"),)

    def __post_init__(self) -> None:
        if not self.order >= 0:
            raise ConfigError(f"order must be at least 0, got {self.order}")

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``vendi``."""
        return {"vendi": vendi_score(rows_of(samples, "features", "samples"), self.order)}


@dataclass(frozen=True, kw_only=True)
class MeanPairwiseSimilarity(FeatureMetric):
    """The mean cosine similarity of two samples (MSS of CADS with SSCD features): lower is better.

    CADS (Sadat et al. 2023, arXiv:2310.17347) does not say whether a sample counts as similar to
    itself, and has no public code; both are reported. They differ by about 1 / N.
    """

    scores = (
        ScoreInfo("similarity", lower_is_better=True),
        ScoreInfo("similarity_all", lower_is_better=None),
    )
    needs = (Need("rows", "features"),)

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``similarity`` of different samples, and ``similarity_all`` with itself."""
        rows = rows_of(samples, "features", "samples")
        return {
            "similarity": mean_pairwise_similarity(rows),
            "similarity_all": mean_pairwise_similarity(rows, diagonal=True),
        }
