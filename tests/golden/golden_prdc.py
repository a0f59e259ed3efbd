"""Golden cases of precision, recall, density and coverage: counts, and so exact."""

import re
from typing import Any

import torch
from golden_cases import MismatchError
from golden_values import Rules, Values, features

from genlab.data.neighbours import squared_radii
from genlab.data.points import Points
from genlab.eval.metrics.manifold import DensityCoverage, PrecisionRecall


class Clouds:
    """A pair of sets for precision and recall."""

    def __init__(self, values: Values, name: str, theirs: dict[str, Any]) -> None:
        self.fake, self.real = values[f"{name}.fake"], values[f"{name}.real"]
        margins = [
            v["smallest_relative_margin"] for k, v in theirs.items() if k.startswith("direct_")
        ]
        # Official tools that compute in float32 can place a point that is this near to a sphere,
        # but not on it by exact numbers, on its other side: one point, hardly ever two.
        self.near = 0 < min(margins, default=0.0) < 1e-5
        self.one_point = 1.01 / min(len(self.fake), len(self.real))

    def expect(
        self,
        values: Values,
        found: dict[str, float],
        theirs: dict[str, float],
        atol: float = 1e-7,
    ) -> None:
        """Compare shares: equal counts, but that torch-fidelity writes them in float32."""
        for key, value in theirs.items():
            values.expect(key, found[key], value, rtol=0, atol=atol)

    def expect_of_float32(
        self, values: Values, found: dict[str, float], theirs: dict[str, float]
    ) -> None:
        """The same for a tool whose distances are float32."""
        self.expect(values, found, theirs, self.one_point if self.near else 1e-7)

    def scores(self, k: int, variant: str, scale: float = 1) -> dict[str, float]:
        sets = features(self.fake * scale), features(self.real * scale)
        return PrecisionRecall(k=k, variant=variant)(*sets)

    def density(self, k: int) -> dict[str, float]:
        return DensityCoverage(k=k)(features(self.fake), features(self.real))


def _torch_fidelity_pr(
    values: Values, theirs: dict[str, float], clouds: Clouds, k: str, path: str, bits: str
) -> None:
    found = clouds.scores(int(k), "torch-fidelity")
    expect = clouds.expect_of_float32 if bits == "32" else clouds.expect
    expect(values, found, theirs)


def _prdc(values: Values, theirs: dict[str, float], clouds: Clouds, k: str) -> None:
    clouds.expect(values, clouds.scores(int(k), "prdc") | clouds.density(int(k)), theirs)


def _direct(values: Values, theirs: dict[str, float], clouds: Clouds, k: str) -> None:
    found = clouds.density(int(k)) | {"smallest_relative_margin": _margin(clouds, int(k))}
    for suffix, variant in (("le", "torch-fidelity"), ("lt", "prdc")):
        scores = clouds.scores(int(k), variant)
        found |= {f"{name}_{suffix}": scores[name] for name in ("precision", "recall")}
    clouds.expect(values, found, theirs)


def _margin(clouds: Clouds, k: int) -> float:
    """How near any point comes to the surface of any ball, relative to its radius."""
    distances = torch.cdist(clouds.fake, clouds.real, compute_mode="donot_use_mm_for_euclid_dist")
    margins = []
    for centres, others in ((clouds.fake, distances.T), (clouds.real, distances)):
        radii = squared_radii(Points(centres), k).sqrt()
        margins.append(((others - radii).abs() / radii.clamp(min=1e-300)).min())
    return float(min(margins))


def _adm(values: Values, theirs: dict[str, Any], clouds: Clouds, scale: str | None) -> None:
    factor = float(scale or 1)
    first, second = (clouds.scores(3, v, factor) for v in ("adm", "adm-evaluate"))
    found = {f"adm_{name}": value for name, value in first.items()}
    found |= {f"adm_evaluate_fraction_{name}": value for name, value in second.items()}
    for key, value in theirs.items():
        if authors := re.fullmatch(r"kynkaanniemi_k(\d+)", key):
            scores = clouds.scores(int(authors[1]), "torch-fidelity", factor)
            clouds.expect_of_float32(values, scores, value)
        elif key in found:
            # Sums in another order round to another float16 now and then: one point, not the 1 %
            # that lie between float16 and exact distances.
            clouds.expect(values, found, {key: value}, clouds.one_point)
        else:
            raise MismatchError(f"{values.case.name}: this check does not know the value {key!r}")


PRECISION_RECALL: Rules = {
    r"torch_fidelity_k(\d+)_(full|save_cpu_ram)_float(32|64)": _torch_fidelity_pr,
    r"prdc_k(\d+)": _prdc,
    r"direct_float64_k(\d+)": _direct,
    r"adm(?:_features_times_(\d+))?": _adm,
}


def pair(values: Values, theirs: dict[str, Any], name: str) -> None:
    """Check all values of one pair of sets."""
    values.apply(PRECISION_RECALL, theirs, Clouds(values, name, theirs))


def stored_radii(values: Values) -> None:
    """Check the distances to k-th neighbours that the case stores."""
    for name in values.own:
        if found := re.fullmatch(r"(.+\.(?:real|fake))_radius_k(\d+)", name):
            radii = squared_radii(Points(values[found[1]]), int(found[2])).sqrt()
            error = (radii - values[name]).abs().max() / values[name].max()
            values.expect(name, float(error), 0, atol=1e-14)
