"""A metric of features and one of likelihoods."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.eval.metrics.base import FeatureMetric, FeatureSet, LikelihoodMetric, Need, ScoreInfo
from genlab.eval.metrics.checks import check_width, moments_of


@dataclass(frozen=True, kw_only=True)
class MeanDifference(FeatureMetric):
    """Root mean square, over features, of the difference of means in standard deviations.

    Attributes:
        least_std: features of the reference that vary less are left out.
    """

    scores = (ScoreInfo("mean-difference", lower_is_better=True),)
    needs = (Need("moments", "features"),)
    reference_needs = (Need("moments", "features"),)

    least_std: float = 1e-6

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """See `FeatureMetric.__call__`."""
        ours = moments_of(samples, "features", "samples")
        real = moments_of(reference, "features", "reference")
        check_width(ours.dim, real.dim)
        std = real.cov.diagonal().sqrt()
        kept = std > self.least_std
        difference = ((ours.mean - real.mean)[kept] / std[kept]).square().mean().sqrt()
        return {"mean-difference": float(difference)}


@dataclass(frozen=True, kw_only=True)
class BitsQuantile(LikelihoodMetric):
    """The bits per dimension that the share ``q`` of the real images needs at most."""

    scores = (ScoreInfo("bpd-quantile", lower_is_better=True),)

    q: float = 0.99

    def __call__(self, bits: Tensor) -> dict[str, float]:
        """See `LikelihoodMetric.__call__`."""
        return {"bpd-quantile": float(torch.quantile(bits.double(), self.q))}
