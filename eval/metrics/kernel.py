"""The kernel distance: squared maximum mean discrepancy between two sets of features."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from typing_extensions import override

from genlab.choices import check_choice, check_least
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, Need, ScoreInfo
from genlab.eval.metrics.checks import check_width, rows_of

BLOCK = 1024
"""Rows of one set that meet as many of the other: 8 MiB of kernel values in float64."""

KERNELS = ("polynomial", "rbf")
ESTIMATORS = ("unbiased", "biased", "u-statistic")
VARIANTS = ("torch-fidelity", "clean-fid", "exact")


@dataclass(frozen=True, kw_only=True)
class KernelDistance(FeatureMetric):
    """The kernel distance (KD; with Inception-2015's 2048 features it is the KID): lower is better.

    The squared maximum mean discrepancy under a kernel: the mean kernel value within the samples
    plus that within the reference less twice that between them. Without bias at any number of
    images, so that values near 0 come out negative half of the time.

    The official tools draw subsets to save memory, and so add noise:

    - ``torch-fidelity``: ``subsets`` of ``subset_size``, drawn without replacement by
      ``RandomState(seed)``, each first from the samples and then from the reference; mean and
      population standard deviation over the subsets; refuses sets smaller than a subset;
    - ``clean-fid``: the same order, from numpy's global state, which ``seed`` stands for; sets
      smaller than a subset shrink it; the mean alone;
    - ``exact``: all pairs, no drawing. As fast as 100 subsets of 1000 at 10,000 images, quadratic
      from there on, memory bounded.

    Kernel values are computed in float64 whatever the features are; torch-fidelity computes in the
    features' type, which moves the seventh digit for float32.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Section 4; Gretton et al. 2012, Eqs. 3, 4, 5.

    Attributes:
        variant: see above.
        subsets: number of subsets.
        subset_size: images of each set in a subset.
        seed: of the drawing.
        kernel: ``polynomial``: ``(gamma <x, y> + coef0)^degree``; ``rbf``:
            ``exp(-|x - y|^2 / (2 sigma^2))``, which with CLIP features, sigma 10 and a factor 1000
            is CMMD.
        degree: of the polynomial.
        gamma: of the polynomial; None is 1 / number of features.
        coef0: of the polynomial.
        sigma: of the rbf kernel.
        estimator: ``unbiased`` leaves out each image's kernel with itself; ``biased`` keeps it;
            ``u-statistic`` also leaves out the pairs of equal number between the sets, which must
            be equally large.
    """

    variant: str = "torch-fidelity"
    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020
    kernel: str = "polynomial"
    degree: int = 3
    gamma: float | None = None
    coef0: float = 1.0
    sigma: float = 10.0
    estimator: str = "unbiased"

    scores = (
        ScoreInfo("kd", lower_is_better=True, official_name="kid"),
        ScoreInfo("kd_std", lower_is_better=None, official_name="kid_std", detail=True),
    )
    needs = (Need("rows", "features"),)
    reference_needs = (Need("rows", "features"),)

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("kernel", self.kernel, KERNELS)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_least(self, subsets=1, subset_size=2, degree=1)
        if self.sigma <= 0:
            raise ConfigError(f"sigma must be positive, got {self.sigma}")

    @override
    def check_counts(self, samples: int, reference: int | None) -> None:
        counts = [count for count in (samples, reference) if count is not None]
        if self.variant != "exact":
            self._subset_size(*counts)
        elif self.estimator == "u-statistic" and len({*counts}) > 1:
            _refuse_unequal(*counts)

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``kd`` and, for torch-fidelity, ``kd_std``."""
        x = rows_of(samples, "features", "samples")
        y = rows_of(reference, "features", "reference").to(x.device)
        check_width(x.shape[1], y.shape[1])
        if self.variant == "exact":
            return {"kd": self.mmd2(x, y)}
        values = [self.mmd2(x[i], y[j]) for i, j in self.draw(len(x), len(y))]
        spread = {"kd_std": float(np.std(values))} if self.variant == "torch-fidelity" else {}
        return {"kd": float(np.mean(values))} | spread

    def draw(
        self, num_samples: int, num_reference: int
    ) -> Iterator[tuple[Int64[Tensor, " size"], Int64[Tensor, " size"]]]:
        """The rows of the samples and of the reference in each subset.

        Raises:
            EvaluationError: there are too few for a subset.
        """
        size = self._subset_size(num_samples, num_reference)
        random = np.random.RandomState(self.seed)  # the stream of both official tools
        for _ in range(self.subsets):
            of_samples = random.choice(num_samples, size, replace=False)
            of_reference = random.choice(num_reference, size, replace=False)
            yield torch.from_numpy(of_samples), torch.from_numpy(of_reference)

    def _subset_size(self, *counts: int) -> int:
        if self.variant == "clean-fid":
            return min(self.subset_size, *counts)
        if min(counts) < self.subset_size:
            raise EvaluationError(
                f"subsets of {self.subset_size} cannot be drawn from {min(counts)} images; write "
                f"metrics=[{{name: kd, subset_size: {min(counts)}}}], or metrics=[{{name: kd, "
                "variant: exact}], which takes all pairs"
            )
        return self.subset_size

    def mmd2(self, x: Float[Tensor, "N d"], y: Float[Tensor, "M d"]) -> float:
        """The squared maximum mean discrepancy of two sets, by the estimator of this metric.

        Raises:
            EvaluationError: the u-statistic is asked for and the sets are not equally large.
        """
        n, m = len(x), len(y)
        xx, own_x = self._sums(x, x)
        yy, own_y = self._sums(y, y)
        xy, paired = self._sums(x, y)
        if self.estimator == "biased":
            return xx / n**2 + yy / m**2 - 2 * xy / (n * m)
        within = (xx - own_x) / (n * (n - 1)) + (yy - own_y) / (m * (m - 1))
        if self.estimator == "unbiased":
            return within - 2 * xy / (n * m)
        if n != m:
            _refuse_unequal(n, m)
        return within - 2 * (xy - paired) / (n * (n - 1))

    def _sums(self, x: Float[Tensor, "N d"], y: Float[Tensor, "M d"]) -> tuple[float, float]:
        """The sum of all kernel values between two sets, and that of the pairs of equal number."""
        total = paired = 0.0
        same = x is y
        for i in range(0, len(x), BLOCK):
            a = x[i : i + BLOCK].double()
            for j in range(i if same else 0, len(y), BLOCK):
                values = self._kernel(a, y[j : j + BLOCK].double())
                # The kernel is symmetric: within one set a block stands for its mirror image, too.
                total += float(values.sum()) * (2 if same and j > i else 1)
                paired += float(values.diagonal().sum()) if i == j else 0.0
        return total, paired

    def _kernel(
        self, x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]
    ) -> Float64[Tensor, "n m"]:
        products = x @ y.T
        if self.kernel == "polynomial":
            gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
            return products.mul_(gamma).add_(self.coef0).pow_(self.degree)
        norms = x.square().sum(1)[:, None] + y.square().sum(1)
        return products.mul_(2).sub_(norms).div_(2 * self.sigma**2).exp_()


def _refuse_unequal(samples: int, reference: int) -> NoReturn:
    raise EvaluationError(
        f"the u-statistic pairs the images of both sets, and there are {samples} and {reference}; "
        "take equally many, or write metrics=[{name: kd, estimator: unbiased}]"
    )
