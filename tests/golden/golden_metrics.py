"""Golden cases of metrics: which kind a case is, and what its values mean.

Everything goes through GenLab's public metrics. Precision and recall have a file of their own, and
so has torch-fidelity from images to scores.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import golden_prdc
import golden_torch_fidelity
import torch
from golden_cases import MismatchError, Run
from golden_torch_fidelity import expect_kid, expect_score, translate
from golden_values import FLOAT64, Rules, Values, features
from torch import Tensor

from genlab.eval.metrics.base import FeatureSet
from genlab.eval.metrics.checks import EvaluationWarning
from genlab.eval.metrics.classifier_score import ClassifierScore, classifier_score
from genlab.eval.metrics.diversity import (
    internal_diversity,
    mean_pairwise_similarity,
    vendi_score,
    vendi_score_of_kernel,
)
from genlab.eval.metrics.frechet import FrechetDistance
from genlab.eval.metrics.kernel import KernelDistance
from genlab.eval.moments import Moments

SINGULAR = 1e-5
"""For official roots of singular products, relative: rounding of 1e-16 under a square root, once
for each dimension without variance. The exact value is held to `FLOAT64` there, too."""


def frechet(fake: Moments, real: Moments) -> float:
    sets = [FeatureSet(count=m.count, moments={"features": m}) for m in (fake, real)]
    return FrechetDistance()(*sets)["fd"]


class Pair:
    """Two sets of features whose Fréchet distance was computed in many ways."""

    def __init__(self, values: Values, name: str) -> None:
        itself = re.fullmatch(r"identical\((.+) vs itself\)", name)
        names = [itself[1]] * 2 if itself else [f"{name}.fake", f"{name}.real"]
        self.rows = [values[n] for n in names]
        self.moments = [Moments.of(rows) for rows in self.rows]
        self.traces = [float(m.cov.trace()) for m in self.moments]
        spectra = [torch.linalg.eigvalsh(m.cov) for m in self.moments]
        self.range = float(spectra[1][0]), float(spectra[1][-1])
        singular = any(s[0] < 1e-12 * s[-1] for s in spectra)
        self.noise = SINGULAR if singular else FLOAT64
        # Where the sets are equal the value is 0, and rounding is relative to the traces.
        self.atol = 1e-10 * sum(self.traces)

    def with_float32_means(self) -> list[Moments]:
        """Statistics of float32 features as torch-fidelity and guided-diffusion take them."""
        found = []
        for rows in self.rows:
            mean = torch.from_numpy(rows.float().numpy().mean(0)).double()
            cov = Moments.of(rows.float()).cov
            found.append(Moments.from_statistics(len(rows), mean, cov))
        return found


def _distance(values: Values, theirs: float, pair: Pair, which: str) -> None:
    rtol = FLOAT64 if which == "exact" else pair.noise
    values.expect("the distance", frechet(*pair.moments), theirs, rtol, pair.atol)


def _distance_of_float32(values: Values, theirs: float, pair: Pair, which: str) -> None:
    moments = [Moments.of(rows.float()) for rows in pair.rows]
    values.expect("the distance", frechet(*moments), theirs, pair.noise, pair.atol)


def _distance_of_float32_means(values: Values, theirs: float, pair: Pair, which: str) -> None:
    moments = pair.with_float32_means()
    values.expect("the distance", frechet(*moments), theirs, pair.noise, pair.atol)


def _mean_term(values: Values, theirs: float, pair: Pair) -> None:
    ours = (pair.moments[0].mean - pair.moments[1].mean).square().sum()
    values.expect("the mean term", float(ours), theirs)


def _trace(values: Values, theirs: float, pair: Pair, which: str) -> None:
    values.expect("the trace", pair.traces[which == "real"], theirs)


def _biased(values: Values, theirs: float, pair: Pair) -> None:
    moments = [
        Moments.from_statistics(m.count, m.mean, m.cov * (m.count - 1) / m.count)
        for m in pair.moments
    ]
    values.expect("the distance", frechet(*moments), theirs, pair.noise, pair.atol)


def _spectrum(values: Values, theirs: list[float], pair: Pair) -> None:
    for ours, value in zip(pair.range, theirs, strict=True):
        values.expect("an eigenvalue", ours, value, atol=1e-14 * pair.range[1])


FRECHET: Rules = {
    "(exact|eigh_formula|torch_fidelity_float64_features|pytorch_fid|clean_fid|edm)": _distance,
    "(edm_one_pass_float32_features|adm_float64_statistics)": _distance_of_float32,
    "(torch_fidelity|adm)_float32_features": _distance_of_float32_means,
    "mean_term": _mean_term,
    "trace_(real|fake)": _trace,
    "biased_covariance_eigh_formula_NOT_official": _biased,
    "real_cov_eig_min_max": _spectrum,
}


def _frechet_pair(values: Values, theirs: dict[str, Any], name: str) -> None:
    values.apply(FRECHET, theirs, Pair(values, name))


def _subset_scores(
    values: Values, theirs: list[dict[str, Any]], fake: Tensor, real: Tensor
) -> None:
    for entry in theirs:
        metric = KernelDistance(**translate(values, entry["kwargs"], golden_torch_fidelity.KID))
        for key, expected in entry.items():
            if key == "kwargs":
                continue
            if key not in ("float64_features", "float32_features"):
                raise MismatchError(f"this check does not know {key!r}")
            # The float32 tool also computes kernels in float32, sums of 1e4 to 1e6 of them.
            single = key == "float32_features"
            rtol = values.meta["suggested_tolerance"][key] if single else FLOAT64
            rows = [rows.float() if single else rows for rows in (fake, real)]
            found = metric(features(rows[0]), features(rows[1]))
            expect_kid(values, found, expected, rtol)


def _mmd_full(values: Values, theirs: float, fake: Tensor, real: Tensor, estimator: str) -> None:
    metric = KernelDistance(variant="exact", estimator=estimator)
    values.expect("kd", metric(features(fake), features(real))["kd"], theirs)


def _mmd_first(
    values: Values, theirs: float, fake: Tensor, real: Tensor, estimator: str, count: str
) -> None:
    _mmd_full(values, theirs, fake[: int(count)], real[: int(count)], estimator)


def _clean_fid(
    values: Values, theirs: float, fake: Tensor, real: Tensor, seed: str, subsets: str, size: str
) -> None:
    metric = KernelDistance(
        variant="clean-fid", seed=int(seed), subsets=int(subsets), subset_size=int(size)
    )
    values.expect("kd", metric(features(fake), features(real))["kd"], theirs)


KID: Rules = {
    "torch_fidelity": _subset_scores,
    "mmd2_(unbiased|biased)_full": _mmd_full,
    r"torch_fidelity_mmd2_(unbiased|biased|u-statistic)_first_(\d+)": _mmd_first,
    r"clean_fid_kernel_distance\(np\.random\.seed\((\d+)\), num_subsets=(\d+), "
    r"max_subset_size=(\d+)\)": _clean_fid,
}


def _kid_pair(values: Values, theirs: dict[str, Any], name: str) -> None:
    values.apply(KID, theirs, values[f"{name}.fake"], values[f"{name}.real"])


def _kid_draws(values: Values) -> None:
    """Row numbers of one subset; what meta.json says of the first tensor names its pair."""
    about = values.meta["files"]["io.safetensors"]
    if "first_subset_fake" not in about:
        return
    found = re.search(
        r"drawn from (\S+)\.fake for the first kwargs", about["first_subset_fake"]["what"]
    )
    if found is None:
        raise MismatchError(f"{values.case.name}: what is first_subset_fake?")
    kwargs = values.meta["values"][found[1]]["torch_fidelity"][0]["kwargs"]
    metric = KernelDistance(**translate(values, kwargs, golden_torch_fidelity.KID))
    counts = [len(values[f"{found[1]}.{which}"]) for which in ("fake", "real")]
    ours = next(metric.draw(*counts))
    theirs = values["first_subset_fake"], values["first_subset_real"]
    if not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)):
        raise MismatchError(f"{values.case.name}: other rows are drawn")


def _inception_scores(values: Values, theirs: list[dict[str, Any]]) -> None:
    logits = values["logits"]
    for entry in theirs:
        metric = ClassifierScore(**translate(values, entry["kwargs"], golden_torch_fidelity.ISC))
        for key, expected in entry.items():
            if key == "kwargs":
                continue
            rows = {"result": logits, "result_float32_logits": logits.float()}[key]
            found = metric(FeatureSet(count=len(rows), rows={"logits": rows}), None)
            expect_score(values, found, expected, FLOAT64)


def _plain_score(values: Values, theirs: float) -> None:
    values.expect("the score", classifier_score(values["logits"]), theirs)
    p = values["logits"].softmax(1)
    values.expect("a probability", float((p - values["probs"]).abs().max()), 0, atol=1e-15)


def _adm_scores(values: Values, theirs: dict[str, float]) -> None:
    for key, value in theirs.items():
        found = re.fullmatch(r"adm_split_(\d+)", key)
        if found is None:
            raise MismatchError(f"{values.case.name}: this check does not know the value {key!r}")
        metric = ClassifierScore(variant="adm", split_size=int(found[1]))
        logits = values["logits"]
        ours = metric(FeatureSet(count=len(logits), rows={"logits": logits}), None)
        values.expect(key, ours["cs"], value)


INCEPTION_SCORE: Rules = {
    "torch_fidelity": _inception_scores,
    "plain_formula_all_rows": _plain_score,
    "adm": _adm_scores,
}


def _vendi_of_cosines(
    values: Values, theirs: dict[str, float], rows: Tensor, p: Tensor | None
) -> None:
    unit = torch.nn.functional.normalize(rows)
    for order, value in theirs.items():
        values.expect(
            f"order {order} of K", vendi_score_of_kernel(unit @ unit.T, float(order), p), value
        )


def _vendi(values: Values, theirs: dict[str, float], rows: Tensor, p: Tensor | None) -> None:
    for order, value in theirs.items():
        values.expect(f"order {order}", vendi_score(rows, float(order), p), value)


def _vendi_of_order_1(
    values: Values, theirs: dict[str, float], rows: Tensor, p: Tensor | None
) -> None:
    """The official ``score_X``, which takes an order and ignores it, as a note says."""
    values.note("score_X (ignores) its q argument")
    for order, value in theirs.items():
        values.expect(f"order 1 for {order}", vendi_score(rows, 1.0, p), value)


def _vendi_unnormalised(values: Values, theirs: dict[str, float], rows: Tensor) -> None:
    scaled = rows / float(values.note(r"score_X_unnormalised is on X/(\d+)"))
    for order, value in theirs.items():
        ours = vendi_score(scaled, normalise=False)
        values.expect(f"order 1 for {order}", ours, value)


def _vendi_of_rbf(values: Values, theirs: float, rows: Tensor) -> None:
    formula = r"(\d+)\*exp\(-\|xi-xj\|\^2/\(2\*{}\^2\)\)"
    factor = float(values.note(formula.format(r"\d+")))
    width = float(values.note(formula.replace(r"(\d+)", r"\d+").format(r"(\d+)")))
    squared = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    K = factor * torch.exp(-squared / (2 * width**2))
    values.expect("the score", vendi_score_of_kernel(K, normalise=True), theirs)


def _internal_diversity(values: Values, theirs: dict[str, float], rows: Tensor) -> None:
    for order, value in theirs.items():
        values.expect(f"order {order}", internal_diversity(rows, int(order)), value)


def _similarity(values: Values, theirs: float, rows: Tensor, which: str) -> None:
    ours = mean_pairwise_similarity(rows, diagonal=which == "including_diagonal")
    values.expect("the mean", ours, theirs)


def _vendi_set(values: Values, theirs: dict[str, Any], name: str) -> None:
    rows, p = values[name], values[f"{name}.p"]
    plain: Rules = {
        "score_K_cosine": lambda v, t: _vendi_of_cosines(v, t, rows, None),
        "score_K_cosine_weighted_p": lambda v, t: _vendi_of_cosines(v, t, rows, p),
        "score_X_cosine": lambda v, t: _vendi_of_order_1(v, t, rows, None),
        "score_X_cosine_weighted_p": lambda v, t: _vendi_of_order_1(v, t, rows, p),
        "score_dual_cosine": lambda v, t: _vendi(v, t, rows, None),
        "score_X_unnormalised": lambda v, t: _vendi_unnormalised(v, t, rows),
        "score_K_normalize_True_of_rbf": lambda v, t: _vendi_of_rbf(v, t, rows),
        "intdiv_K": lambda v, t: _internal_diversity(v, t, rows),
        "mean_pairwise_cosine_(offdiagonal|including_diagonal)": (
            lambda v, t, which: _similarity(v, t, rows, which)
        ),
    }
    values.apply(plain, theirs)


def metrics(run: Run) -> None:
    """Check a case of metrics.

    What kind it is tell the names of its values: the official functions that a case of one kind was
    made with are not always listed.
    """
    with warnings.catch_warnings():
        # Singular covariances are part of the cases.
        warnings.simplefilter("ignore", EvaluationWarning)
        _check(Values(run.case))


def _check(values: Values) -> None:
    theirs = values.meta.get("values")
    if not isinstance(theirs, dict) or not theirs:
        raise MismatchError(f"{values.case.name}: there are no values")
    if "extractor" in values.meta:
        golden_torch_fidelity.check(values)
        values.expect_end()
        return
    keys = _keys(theirs)
    kinds = [kind for kind, sign in SIGNS.items() if sign in keys]
    if len(kinds) != 1:
        raise MismatchError(f"{values.case.name}: is it of the kind {' or '.join(kinds) or '?'}?")
    KINDS[kinds[0]](values, theirs)
    values.expect_end()


def _keys(tree: Any) -> set[str]:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    own = set(tree) if isinstance(tree, dict) else set()
    return own.union(*(_keys(child) for child in children))


def _frechet_case(values: Values, theirs: dict[str, Any]) -> None:
    values.apply({"(.+)": _frechet_pair}, theirs)


def _kid_case(values: Values, theirs: dict[str, Any]) -> None:
    values.apply({"(.+)": _kid_pair}, theirs)
    _kid_draws(values)


def _prdc_case(values: Values, theirs: dict[str, Any]) -> None:
    values.apply({"(.+)": golden_prdc.pair}, theirs)
    golden_prdc.stored_radii(values)


SIGNS = {
    "frechet": "exact",
    "kid": "kernel_inception_distance_mean",
    "inception score": "inception_score_mean",
    "prdc": "coverage",
    "vendi": "score_K_cosine",
}
"""Kind -> a key that stands in every case of it and in none of another."""

KINDS: dict[str, Callable[[Values, dict[str, Any]], None]] = {
    "frechet": _frechet_case,
    "kid": _kid_case,
    "inception score": lambda values, theirs: values.apply(INCEPTION_SCORE, theirs),
    "prdc": _prdc_case,
    "vendi": lambda values, theirs: values.apply({"(.+)": _vendi_set}, theirs),
}
