"""Precision, recall, density and coverage: sets of features as unions of balls."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from genlab.choices import check_choice
from genlab.data.neighbours import crossings, squared_radii
from genlab.data.points import together
from genlab.errors import ConfigError
from genlab.eval.metrics.adm_distances import adm_precision_recall
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, Need, ScoreInfo
from genlab.eval.metrics.checks import check_enough, check_width, rows_of

VARIANTS = ("torch-fidelity", "adm", "adm-evaluate", "prdc")


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall(FeatureMetric):
    """Improved precision and recall, and their harmonic mean; 0 to 1, higher is better.

    The reference's manifold is the union of balls around its images, each reaching to the k-th
    nearest other one. Precision is the share of samples inside; recall the share of reference
    images inside the samples' manifold. Both depend on the numbers of images: fix these.

    The official tools disagree:

    - ``torch-fidelity``, and the authors' own code: a point on a sphere is inside. Which of the two
      sets is called the first differs; precision is always about the samples here;
    - ``prdc``: a point on a sphere is outside. With k + 1 equal images a radius is 0, and then that
      decides whether their copies are inside;
    - ``adm`` (guided-diffusion): as torch-fidelity, in float16, see `adm_precision_recall`;
    - ``adm-evaluate``: the same through that evaluator's other code path.

    Their default features differ, too: torch-fidelity's and the authors' VGG-16, ADM's Inception.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, Eqs. 1 and 2.

    Attributes:
        k: neighbours that radii reach to.
        variant: see above.
    """

    k: int = 3
    variant: str = "torch-fidelity"

    scores = (
        ScoreInfo("precision", lower_is_better=False),
        ScoreInfo("recall", lower_is_better=False),
        ScoreInfo("f_score", lower_is_better=None, detail=True),
    )
    needs = (Need("rows", "features"),)
    reference_needs = (Need("rows", "features"),)

    def __post_init__(self) -> None:
        _check_k(self.k)
        check_choice("variant", self.variant, VARIANTS)

    @override
    def check_counts(self, samples: int, reference: int | None) -> None:
        check_enough(samples, "samples", self.k + 1)
        check_enough(reference, "reference", self.k + 1)

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``precision``, ``recall`` and ``f_score``."""
        fake, real = _both(samples, reference, self.k)
        if self.variant.startswith("adm"):
            other_way = self.variant == "adm-evaluate"
            precision, recall = adm_precision_recall(fake, real, self.k, from_samples=other_way)
        else:
            precision, recall = self._exact(fake, real)
        # torch-fidelity's guard against 0 / 0.
        f_score = 2 * precision * recall / max(1e-5, precision + recall)
        return {"precision": precision, "recall": recall, "f_score": f_score}

    def _exact(self, fake: Float[Tensor, "N d"], real: Float[Tensor, "M d"]) -> tuple[float, float]:
        a, b = together(fake, real)
        radii = squared_radii(a, self.k), squared_radii(b, self.k)
        around_a, around_b = crossings(a, b, *radii, closed=self.variant != "prdc")
        shares = [float((c.balls > 0).double().mean()) for c in (around_b, around_a)]
        return shares[0], shares[1]


@dataclass(frozen=True, kw_only=True)
class DensityCoverage(FeatureMetric):
    """Density and coverage; higher is better.

    Density is the mean number of reference balls that a sample lies in, over k: about 1 for real
    images, more where samples crowd where the reference does. Coverage is the share of reference
    balls with a sample inside, 0 to 1. Unlike recall, neither builds balls around samples, which a
    few outliers would blow up.

    A point on a sphere is outside, as in the authors' package prdc.

    Source: Naeem et al. 2020, arXiv:2002.09797, Eqs. 3 and 4.

    Attributes:
        k: neighbours that radii reach to.
    """

    k: int = 5

    scores = (
        ScoreInfo("density", lower_is_better=False),
        ScoreInfo("coverage", lower_is_better=False),
    )
    needs = (Need("rows", "features"),)
    reference_needs = (Need("rows", "features"),)

    def __post_init__(self) -> None:
        _check_k(self.k)

    @override
    def check_counts(self, samples: int, reference: int | None) -> None:
        check_enough(reference, "reference", self.k + 1)

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``density`` and ``coverage``."""
        fake = rows_of(samples, "features", "samples", at_least=1)
        real = rows_of(reference, "features", "reference", at_least=self.k + 1)
        check_width(fake.shape[1], real.shape[1])
        a, b = together(fake, real)
        _, crossing = crossings(a, b, None, squared_radii(b, self.k), closed=False)
        return {
            "density": float(crossing.balls.double().mean()) / self.k,
            "coverage": float((crossing.points > 0).double().mean()),
        }


def _both(samples: FeatureSet, reference: FeatureSet | None, k: int) -> tuple[Tensor, Tensor]:
    fake = rows_of(samples, "features", "samples", at_least=k + 1)
    real = rows_of(reference, "features", "reference", at_least=k + 1)
    check_width(fake.shape[1], real.shape[1])
    return fake, real


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
