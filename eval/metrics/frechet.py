"""The Fréchet distance between two sets of features, of any number of images, and without bias."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from typing_extensions import override

from genlab.errors import ConfigError, EvaluationError
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, Need, ScoreInfo
from genlab.eval.metrics.checks import check_enough, check_width, moments_of, rows_of, warn
from genlab.eval.moments import Moments

EPS = 2.0**-52
COLUMNS = 256
"""Columns that triangular products are cut into: what is known to be zero is not multiplied."""


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance of the Gaussians with these means and covariances.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Heusel et al. 2017, arXiv:1706.08500, Eq. 6),
    with unbiased covariances, as everybody has them. The trace of the root is taken in symmetric
    form, in float64:

    - full rank: with ``S1 = L L^T`` the matrix ``L^T S2 L`` has the eigenvalues of ``S1 S2``;
    - singular or nearly so (no more images than features, constant features): with any factors
      ``S1 = A A^T`` and ``S2 = B B^T`` it is the sum of the singular values of ``A^T B``. The
      eigenvalues would be zeros blurred by rounding, and each square root turns a blur of 1e-16
      into one of 1e-8.

    The official tools take the same formula through other algorithms. torch-fidelity sums the real
    parts of the roots of the eigenvalues of ``S1 S2`` by a general solver; pytorch-fid, clean-fid,
    EDM and guided-diffusion take scipy's sqrtm of that product. pytorch-fid and guided-diffusion
    add 1e-6 to both diagonals where that is not finite and refuse an imaginary part above 1e-3,
    clean-fid and EDM drop it. For full rank all agree to 1e-12, for singular covariances to
    about 1e-6. Larger, and also about 1e-6, is what features in float32 do: torch-fidelity and
    guided-diffusion then keep the means in float32, which pytorch-fid and EDM do not; nor do
    `Moments`.

    Args:
        a: of one set, at least two images.
        b: of the other, the same number of features.

    Returns:
        The distance; for a set against itself 0, or of either sign and as small as rounding.

    Raises:
        EvaluationError: the widths differ, a set has fewer than two images, or the moments are not
            finite.

    Warns:
        EvaluationWarning: a set has no more images than features: the distance is then well
            defined, but biased upwards by a lot.
    """
    for moments in (a, b):
        if moments.count <= moments.dim:
            warn(
                f"{moments.count} images for {moments.dim} features leave the covariance singular, "
                "and the Fréchet distance says more about that number than about the images; give "
                f"more than {moments.dim} images or take a narrower extractor"
            )
            break
    return _distance(a, b)


def _distance(a: Moments, b: Moments) -> float:
    """`frechet_distance` without the warning."""
    check_width(a.dim, b.dim)
    if min(a.count, b.count) < 2:
        raise EvaluationError(
            f"a covariance needs at least two images, got {min(a.count, b.count)}"
        )
    device = a.mean.device
    S1, S2 = a.cov, b.cov.to(device)
    shift = (a.mean - b.mean.to(device)).square().sum()
    trace = S1.trace() + S2.trace()
    if not (shift + trace).isfinite():
        raise EvaluationError(
            "mean or covariance are not finite; check the images and the extractor"
        )
    root = _trace_by_eigenvalues(S1, S2) if min(a.count, b.count) > a.dim else None
    if root is None:
        A, B = _factor(S1, a.count - 1), _factor(S2, b.count - 1)
        root = torch.linalg.svdvals(A.T @ B).sum()
    return float(shift + trace - 2 * root)


def _trace_by_eigenvalues(
    S1: Float64[Tensor, "d d"], S2: Float64[Tensor, "d d"]
) -> Float64[Tensor, ""] | None:
    """``tr (S1 S2)^(1/2)``, or None where one of them is singular to working precision."""
    L = _cholesky(S1)
    if L is None:
        return None
    eigenvalues = torch.linalg.eigvalsh(_congruence(L, S2))
    # Below this they are rounding, and their roots are not small.
    if not eigenvalues[0] > 4 * EPS * eigenvalues[-1]:
        return None
    return eigenvalues.sqrt().sum()


def _cholesky(S: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"] | None:
    """The lower factor of ``S``, or None where ``S`` is singular to working precision."""
    L, failed = torch.linalg.cholesky_ex(S)
    pivots = L.diagonal().square()
    if failed or not pivots.min() > len(S) * EPS * pivots.max():
        return None
    return L


def _congruence(L: Float64[Tensor, "d d"], S: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """The lower triangle of ``L^T S L`` for lower triangular ``L``: 0.4 of two full products."""
    d = len(L)
    starts = range(0, d, COLUMNS)
    SL = torch.empty_like(S)
    for j in starts:
        SL[:, j : j + COLUMNS] = S[:, j:] @ L[j:, j : j + COLUMNS]
    product = torch.zeros_like(S)
    for i in starts:
        end = min(i + COLUMNS, d)
        product[i:end, :end] = L[i:, i:end].T @ SL[i:, :end]
    return product


def _factor(S: Float64[Tensor, "d d"], max_rank: int) -> Float64[Tensor, "d r"]:
    """Some ``A`` with ``S = A A^T``, of as many columns as ``S`` has rank."""
    L = _cholesky(S) if max_rank >= len(S) else None
    if L is not None:
        return L
    eigenvalues, vectors = torch.linalg.eigh(S)
    kept = eigenvalues > len(S) * EPS * eigenvalues[-1].clamp(min=0)
    kept[: max(0, len(S) - max_rank)] = False  # ascending; n images span n - 1 dimensions
    return vectors[:, kept] * eigenvalues[kept].sqrt()


@dataclass(frozen=True, kw_only=True)
class FrechetDistance(FeatureMetric):
    """The Fréchet distance (FD; with Inception-2015's 2048 features it is the FID).

    Lower is better. It falls with the number of images at equal quality: compare equal numbers, or
    take `FrechetDistanceInfinity`. See `frechet_distance`.
    """

    scores = (ScoreInfo("fd", lower_is_better=True, official_name="fid"),)
    needs = (Need("moments", "features"),)
    reference_needs = (Need("moments", "features"),)

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``fd``."""
        ours = moments_of(samples, "features", "samples")
        return {"fd": frechet_distance(ours, moments_of(reference, "features", "reference"))}


@dataclass(frozen=True, kw_only=True)
class SpatialFrechetDistance(FeatureMetric):
    """The Fréchet distance of feature maps, which sees where things are (sFD; sFID).

    guided-diffusion's evaluator takes the first 7 channels of Inception's ``mixed_6/conv``, 17x17,
    flattened in the order H, W, C: 2023 numbers (Nash et al. 2021, arXiv:2103.03841, and ADM's
    code).
    """

    scores = (ScoreInfo("sfd", lower_is_better=True, official_name="sfid"),)
    needs = (Need("moments", "spatial"),)
    reference_needs = (Need("moments", "spatial"),)

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``sfd``."""
        ours = moments_of(samples, "spatial", "samples")
        return {"sfd": frechet_distance(ours, moments_of(reference, "spatial", "reference"))}


@dataclass(frozen=True, kw_only=True)
class FrechetDistanceInfinity(FeatureMetric):
    """The Fréchet distance of infinitely many samples, extrapolated (FD-infinity).

    The distance of N samples is nearly linear in 1/N; a line is fitted to the distances of subsets
    and read at 1/N = 0. Subsets are drawn without replacement, each anew, by a seeded stream of
    their own. The bias of a finite reference stays.

    Source: Chong and Forsyth 2020, arXiv:1911.07023, Section 4; sizes as in dgm-eval (Stein et al.
    2023): 15, evenly spaced from ``min(5000, N / 10)`` to N. Departure: the original draws sizes
    from one shared random state without a seed.

    Attributes:
        num_sizes: subsets.
        least: images in the smallest one, unless N / 10 is less.
        seed: of the subsets.
    """

    num_sizes: int = 15
    least: int = 5000
    seed: int = 0

    scores = (ScoreInfo("fd-infinity", lower_is_better=True, official_name="fid-infinity"),)
    needs = (Need("rows", "features"),)
    reference_needs = (Need("moments", "features"),)

    def __post_init__(self) -> None:
        if self.num_sizes < 2 or self.least < 2:
            raise ConfigError(
                f"num_sizes and least must be at least 2, got {self.num_sizes} and {self.least}"
            )

    @override
    def check_counts(self, samples: int, reference: int | None) -> None:
        check_enough(samples, "samples", 10 * self.num_sizes)

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        """Compute ``fd-infinity``."""
        rows = rows_of(samples, "features", "samples", at_least=10 * self.num_sizes)
        real = moments_of(reference, "features", "reference")
        sizes, distances = self.distances(rows, real)
        return {"fd-infinity": intercept(1 / sizes.double(), distances)}

    def distances(
        self, rows: Float[Tensor, "N d"], reference: Moments
    ) -> tuple[Float[Tensor, " sizes"], Float64[Tensor, " sizes"]]:
        """The subset sizes and the Fréchet distance of each, for a plot of the fit."""
        first = min(self.least, len(rows) // 10)
        if first <= rows.shape[1]:
            warn(
                f"the smallest subset has {first} images for {rows.shape[1]} features, where the "
                "Fréchet distance is not linear in 1/N: trust FD-infinity only with more than ten "
                "times as many images as features"
            )
        sizes = torch.linspace(first, len(rows), self.num_sizes, dtype=torch.float64).floor()
        generator = torch.Generator().manual_seed(self.seed)
        distances = []
        for size in sizes.int().tolist():
            chosen = torch.randperm(len(rows), generator=generator)[:size]
            subset = Moments.of(rows[chosen.to(rows.device)])
            distances.append(_distance(subset, reference))
        return sizes, torch.tensor(distances, dtype=torch.float64)


def intercept(x: Float64[Tensor, " n"], y: Float64[Tensor, " n"]) -> float:
    """Where the least-squares line through the points meets x = 0.

    >>> round(intercept(torch.tensor([1.0, 2.0]).double(), torch.tensor([5.0, 7.0]).double()), 9)
    3.0
    """
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())
