"""torch-fidelity from images to scores: its extractor, its metrics, its way of reading images."""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_cases import MismatchError, compare
from golden_extractor import DEFINITION, NAME
from golden_values import Values
from PIL import Image
from torch import Tensor

from genlab.eval.collect import collect
from genlab.eval.extractors.base import build_extractor
from genlab.eval.extractors.resize import tf1_bilinear
from genlab.eval.metrics.base import FeatureSet
from genlab.eval.metrics.classifier_score import ClassifierScore
from genlab.eval.metrics.frechet import FrechetDistance
from genlab.eval.metrics.kernel import KernelDistance
from genlab.eval.metrics.manifold import PrecisionRecall
from genlab.eval.samples import Drawn, Samples, StoredImages

KID = {
    "kid_subsets": "subsets",
    "kid_subset_size": "subset_size",
    "kid_kernel": "kernel",
    "kid_kernel_poly_degree": "degree",
    "kid_kernel_poly_gamma": "gamma",
    "kid_kernel_poly_coef0": "coef0",
    "kid_kernel_rbf_sigma": "sigma",
    "rng_seed": "seed",
}
ISC = {"splits": "splits", "shuffle": "shuffle", "rng_seed": "seed"}
WHOLE_ISC = {"isc_splits": "splits", "samples_shuffle": "shuffle", "rng_seed": "seed"}
WHOLE_PRC = {"prc_neighborhood": "k"}
WITHOUT_EFFECT = {"cuda", "batch_size", "isc", "fid", "kid", "prc", "feature_extractor", "verbose",
                  "cache", "save_cpu_ram"}  # fmt: skip
"""Of the keyword arguments of a whole call: those that its numbers do not depend on."""

CHANGES = {
    r"isc_splits_(\d+)": "isc_splits",
    r"kid_subset_size_(\d+)": "kid_subset_size",
    r"subsets_(\d+)": "kid_subsets",
    r"seed_(\d+)": "rng_seed",
    "no_shuffle": "samples_shuffle",
}
"""What the name of a call says of the arguments that it changes."""


def translate(values: Values, kwargs: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Official keyword arguments as ours."""
    if unknown := set(kwargs) - set(names):
        raise MismatchError(f"{values.case.name}: this check does not know {sorted(unknown)}")
    options = {names[key]: value for key, value in kwargs.items()}
    if options.get("kernel") == "poly":
        options["kernel"] = "polynomial"
    return options


def expect_kid(
    values: Values, found: dict[str, float], theirs: dict[str, float], rtol: float
) -> None:
    names = {"kernel_inception_distance_mean": "kd", "kernel_inception_distance_std": "kd_std"}
    _expect(values, found, theirs, names, rtol)


def expect_score(
    values: Values, found: dict[str, float], theirs: dict[str, float], rtol: float
) -> None:
    names = {"inception_score_mean": "cs", "inception_score_std": "cs_std"}
    _expect(values, found, theirs, names, rtol)


def _expect(
    values: Values,
    found: dict[str, float],
    theirs: dict[str, float],
    names: dict[str, str],
    rtol: float,
) -> None:
    for key, value in theirs.items():
        if key not in names:
            raise MismatchError(f"{values.case.name}: this check does not know the value {key!r}")
        values.expect(key, found[names[key]], value, rtol, atol=1e-12)


class InMemory(Samples):
    """Images that are all there."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.labels, self.class_names = images, None, None
        self.count = len(images)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])

    def read(self, start: int, stop: int) -> Drawn:
        return Drawn(images=self.images[start:stop])

    def identity(self) -> dict[str, Any]:
        return {"images": "of the case"}


def check(values: Values) -> None:
    """Check a case with an extractor of its own."""
    if values.meta["extractor"]["definition"] != DEFINITION:
        raise MismatchError(f"{values.case.name}: its extractor is another network")
    with tempfile.TemporaryDirectory() as folder:
        for name, theirs in values.meta["values"].items():
            kwargs = dict(values.meta["kwargs"])
            first, second = _inputs(values, name, kwargs, Path(folder))
            _scores(values, _features(values, first), _features(values, second), kwargs, theirs)
    _outputs(values)
    _resizes(values)


def _inputs(
    values: Values, name: str, kwargs: dict[str, Any], folder: Path
) -> tuple[Samples, Samples]:
    """The images of a call; changes ``kwargs`` as its name says."""
    reference = values["input2"]
    if name == "generative_model_input1":
        _latents(values)
        return InMemory(values["gm.images"]), InMemory(reference)
    if name == "png_directories":
        return _stored(values["input1"], folder / "1"), _stored(reference, folder / "2")
    left = name.removeprefix("dataset")
    for pattern, key in CHANGES.items():
        if found := re.search(f"_{pattern}(?=_|$)", left):
            kwargs[key] = int(found[1]) if found.groups() else False
            left = left.replace(found[0], "", 1)
    if left:
        raise MismatchError(f"{values.case.name}: this check does not know the call {name!r}")
    return InMemory(values["input1"]), InMemory(reference)


def _latents(values: Values) -> None:
    """torch-fidelity draws latents from one stream, whatever its batches."""
    about = values.meta["files"]["io.safetensors"]["gm.z"]["what"]
    seed = re.search(r"RandomState\(rng_seed=(\d+)\)\.randn", about)
    if seed is None:
        raise MismatchError(f"{values.case.name}: how was gm.z drawn?")
    z = values["gm.z"]
    drawn = torch.from_numpy(np.random.RandomState(int(seed[1])).randn(*z.shape)).float()
    if not torch.equal(drawn, z):
        raise MismatchError(f"{values.case.name}: gm.z is drawn otherwise")


def _stored(images: Tensor, folder: Path) -> StoredImages:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:05}.png")
    return StoredImages(folder)


def _features(values: Values, samples: Samples) -> FeatureSet:
    extractor = build_extractor(NAME, values.case.folder / "weights.safetensors")
    needs = [*FrechetDistance.needs, *PrecisionRecall.needs, *ClassifierScore.needs]
    collected = collect(samples, extractor, needs, batch_size=values.meta["kwargs"]["batch_size"])
    assert collected is not None
    return collected.features


def _scores(
    values: Values,
    first: FeatureSet,
    second: FeatureSet,
    kwargs: dict[str, Any],
    theirs: dict[str, float],
) -> None:
    known = {**KID, **WHOLE_ISC, **WHOLE_PRC}
    translate(values, {k: v for k, v in kwargs.items() if k not in WITHOUT_EFFECT}, known)

    def options(names: dict[str, str]) -> dict[str, Any]:
        return translate(values, {k: v for k, v in kwargs.items() if k in names}, names)

    found = (
        ClassifierScore(**options(WHOLE_ISC))(first, None)
        | FrechetDistance()(first, second)
        | KernelDistance(**options(KID))(first, second)
        | PrecisionRecall(**options(WHOLE_PRC))(first, second)
    )
    names = {
        "inception_score_mean": "cs",
        "inception_score_std": "cs_std",
        "frechet_inception_distance": "fd",
        "kernel_inception_distance_mean": "kd",
        "kernel_inception_distance_std": "kd_std",
    }
    shares = ("precision", "recall", "f_score")
    # Features, and torch-fidelity's kernels, are float32; counts are exact but written in float32.
    rtol = values.meta["suggested_tolerance"]["rtol"]
    _expect(values, found, {k: v for k, v in theirs.items() if k not in shares}, names, rtol)
    for name in shares:
        values.expect(name, found[name], theirs[name], rtol=0, atol=1e-7)


def _outputs(values: Values) -> None:
    """What the official extractor gave for the images."""
    names = {"feat64": "features", "logits": "logits"}
    extractor = build_extractor(NAME, values.case.folder / "weights.safetensors")
    for name in values.own:
        found = re.fullmatch(r"(input\d+)\.(\w+)", name)
        if found and found[2] in names:
            output = names[found[2]]
            compare(name, extractor(values[found[1]], [output])[output], values[name])


def _resizes(values: Values) -> None:
    """TensorFlow 1's bilinear resize, for the values that stand on it."""
    for name in values.own:
        if found := re.fullmatch(r"resize\.(\w+)\.in", name):
            out = values[f"resize.{found[1]}.out"]
            compare(name, tf1_bilinear(values[name], (out.shape[2], out.shape[3])), out)
