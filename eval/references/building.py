"""References: the real images that samples are compared with, by name, by file or by images."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from genlab.checkpoints.zoo.catalogue import home
from genlab.errors import EvaluationError, OutputError, nearest
from genlab.eval.collect import collect
from genlab.eval.extractors.base import FeatureExtractor
from genlab.eval.metrics.base import Need
from genlab.eval.references.datasets import DATASETS
from genlab.eval.references.files import (
    Reference,
    is_statistics,
    read_identity,
    read_reference,
    write_reference,
)
from genlab.eval.samples import Drawn, Samples, StoredImages
from genlab.files import text_sha256

INCEPTIONS = ("inception", "inception-clean", "inception-legacy")
"""Extractors with the official weights: which of their resizes a foreign file was made with, it
does not say (EDM and ADM: inception; clean-fid: -clean; pytorch-fid: -legacy)."""

OnProgress = Callable[[int, int], None]
"""Called with (images just done, images in all)."""


def find_reference(
    spec: str,
    extractor: FeatureExtractor,
    needs: Iterable[Need],
    *,
    dataset: str | None = None,
    split: str = "train",
    alpha: str = "refuse",
    on_progress: OnProgress = lambda done, total: None,
) -> Reference:
    """The reference that a text names, with everything that the metrics need of it.

    Args:
        spec: a bundled set (``fmnist-train``; ``train`` where the data set is known), a file of
            statistics, or real images.
        extractor: on its device; the statistics must have been made with it.
        needs: of all metrics.
        dataset: decides how real images are brought to size, see `DATASETS`.
        split: part of the real images, where there are several.
        alpha: what lies behind transparent ones, see `genlab.data.conform.Conform`.
        on_progress: called while real images are read.

    Raises:
        EvaluationError: it was made with another extractor, or lacks what a metric needs.
        DataError: there are no such images.
    """
    required = sorted(set(needs))
    reference = _bundled(spec, dataset, extractor.name)
    if reference is None and is_statistics(Path(spec)):
        reference = read_reference(Path(spec))
    if reference is not None:
        check_extractor(reference, extractor, spec)
        return _with_images(_completed(reference, extractor, required, spec), required)
    entry = DATASETS.get(dataset or "")
    size, fit = (entry.image_size, entry.fit) if entry else (None, "none")
    images = StoredImages(spec, size, fit, split, alpha)
    made = compute_reference(images, extractor, required, on_progress=on_progress)
    return _with_images(made, required)


class _Hashed(Samples):
    """Images that are hashed as they are read: by their pixels, whatever files they lie in.

    The hash is the sum of all images' SHA-256 modulo 2**256, so that neither the order nor the
    size of batches matters: a reference is a set.
    """

    def __init__(self, images: StoredImages) -> None:
        self._images, self._sum = images, 0
        self.count, self.image_shape = images.count, images.image_shape
        self.labels, self.class_names = images.labels, images.class_names

    @override
    def read(self, start: int, stop: int) -> Drawn:
        drawn = self._images.read(start, stop)
        for pixels in drawn.images.numpy():
            self._sum += int.from_bytes(hashlib.sha256(pixels.tobytes()).digest(), "big")
        return drawn

    @override
    def identity(self) -> dict[str, Any]:
        return self._images.identity()

    def digest(self) -> str:
        """The hash, once every image was read."""
        return f"{self._sum % 2**256:064x}"


def _with_images(reference: Reference, needs: Sequence[Need]) -> Reference:
    """Read the images themselves for a metric that wants them; they are never cached."""
    if reference.images is None or not any(need.what == "images" for need in needs):
        return reference
    images = reference.images.read(0, reference.images.count).images
    return replace(reference, features=replace(reference.features, images=images))


def bundled_references() -> list[str]:
    """Names of the sets whose statistics come with the package, with their extractor."""
    folder = files("genlab.eval").joinpath("bundled", "references")
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".safetensors") for entry in folder.iterdir())


def _bundled(spec: str, dataset: str | None, extractor: str) -> Reference | None:
    name = f"{dataset}-{spec}" if spec in ("train", "test") and dataset else spec
    if f"{name}.{extractor}" in bundled_references():
        folder = files("genlab.eval").joinpath("bundled", "references")
        with as_file(folder.joinpath(f"{name}.{extractor}.safetensors")) as path:
            return read_reference(path)
    if not Path(spec).exists():
        available = ", ".join(bundled_references())
        raise EvaluationError(
            f"there is no reference {spec!r} for the extractor {extractor}: neither bundled "
            f"({available or 'none'}) nor a path; give the real images with --reference PATH"
        )
    return None


def _completed(
    reference: Reference, extractor: FeatureExtractor, needs: Sequence[Need], where: str
) -> Reference:
    """Add from the file's own images what its statistics lack (as in guided-diffusion's layout)."""
    have = reference.features
    stored: Mapping[str, Mapping[str, object]] = {"moments": have.moments, "rows": have.rows}
    lacking = [
        need for need in needs if need.what in stored and need.output not in stored[need.what]
    ]
    lacking += [need for need in needs if need.what == "labels" and have.labels is None]
    lacking += [need for need in needs if need.what == "images" and reference.images is None]
    if not lacking:
        return reference
    if reference.images is None or any(need.what == "labels" for need in lacking):
        missing = " ".join(lacking[0]).strip()
        raise EvaluationError(
            f"{where} lacks the {missing} that a metric needs; give the real images with "
            "--reference PATH, or leave the metric out"
        )
    gathered = collect(reference.images, extractor, lacking)
    assert gathered is not None
    added = gathered.features
    features = replace(
        have, moments={**added.moments, **have.moments}, rows={**added.rows, **have.rows}
    )
    return replace(reference, features=features)


def check_extractor(reference: Reference, extractor: FeatureExtractor, where: str) -> None:
    """Refuse statistics that were made with another extractor.

    Raises:
        EvaluationError: names both.
    """
    ours = extractor.identity()
    if reference.extractor is None:
        if ours["name"] not in INCEPTIONS:
            raise EvaluationError(
                f"{where} holds statistics of Inception's 2048 features, the samples are looked at "
                f"with {ours['name']}; use --extractor inception with the official weights, or "
                "give the real images"
            )
        return
    differs = [key for key in ours if reference.extractor.get(key) != ours[key]]
    if differs:
        theirs = reference.extractor
        raise EvaluationError(
            f"{where} was made with another extractor: {differs[0]} is {theirs.get(differs[0])!r} "
            f"there and {ours[differs[0]]!r} here; make it again with 'genlab eval reference'"
        )


def compute_reference(
    images: StoredImages,
    extractor: FeatureExtractor,
    needs: Iterable[Need],
    *,
    name: str | None = None,
    batch_size: int = 50,
    on_progress: OnProgress = lambda done, total: None,
) -> Reference:
    """Reference statistics of real images, from the cache where they were made before.

    The cache is keyed by the content of the data, how it is read, the extractor with its weights,
    and what is needed: a changed file or other weights never meet an old entry.

    Args:
        images: the whole set.
        extractor: on its device.
        needs: of all metrics.
        name: how the protocol card calls the set; None is the name of a bundled set where the
            pixels are the same ones, else that of the file or folder, with the part that was read.
        batch_size: images at a time.
        on_progress: called as the work goes on.
    """
    identity = images.identity()
    required = sorted({*needs, *([Need("labels")] if images.labels is not None else [])})
    key = text_sha256([identity, extractor.identity(), [list(need) for need in required], 1])
    called = name or _name_of(images)
    cached = home() / "references" / f"{called}-{key[:16]}.safetensors"
    if cached.is_file():
        try:
            reference = read_reference(cached)
            features = replace(reference.features, class_names=images.class_names)
            return replace(reference, features=features, images=images)
        except EvaluationError:
            cached.unlink()  # damaged: made again
    hashed = _Hashed(images)
    gathered = collect(
        hashed,
        extractor,
        [need for need in required if need.what != "images"],
        batch_size=batch_size,
        on_progress=lambda count: on_progress(count, images.count),
    )
    assert gathered is not None
    digest = hashed.digest()
    called = name or _bundled_names().get(digest) or called
    reference = Reference(
        features=gathered.features,
        identity={"name": called, "pixels_sha256": digest, "count": images.count},
        extractor=extractor.identity(),
        image_size=images.image_shape[1],
        images=images,
    )
    with suppress(OutputError):  # a cache that cannot be written costs time, not the score
        write_reference(cached, reference)
    return reference


def _name_of(images: StoredImages) -> str:
    """The name of a set for which none is given; its data set is not guessed."""
    stem = images.path.resolve().stem
    return stem if images.split is None else f"{stem}-{images.split}"


@cache
def _bundled_names() -> Mapping[str, str]:
    """SHA-256 of the pixels -> name of each bundled set."""
    names = {}
    for entry in bundled_references():
        file = files("genlab.eval").joinpath("bundled", "references", f"{entry}.safetensors")
        with as_file(file) as path:
            identity = read_identity(path)
        names[str(identity.get("pixels_sha256"))] = str(identity["name"])
    return names


def with_fewer_rows(reference: Reference, count: int) -> Reference:
    """Keep the features of some images only, spread evenly over the set; moments stay of all.

    Args:
        reference: with features.
        count: of images whose features stay.
    """
    have = reference.features
    chosen = torch.linspace(0, have.count - 1, min(count, have.count), dtype=torch.float64)
    index = chosen.round().long()
    rows = {output: values[index].contiguous() for output, values in have.rows.items() if count}
    labels = None if have.labels is None else have.labels[index]
    identity = {**reference.identity, "rows": len(index)}
    return replace(reference, features=replace(have, rows=rows, labels=labels), identity=identity)


def everything(extractor: FeatureExtractor, outputs: Sequence[str] | None = None) -> list[Need]:
    """What a file of statistics can hold of an extractor: moments, and features but for maps.

    Args:
        extractor: whose outputs.
        outputs: some of them; None takes all.

    Raises:
        EvaluationError: it has no such output.
    """
    chosen = list(extractor.outputs) if outputs is None else list(outputs)
    for output in chosen:
        if output not in extractor.outputs:
            raise EvaluationError(
                f"{extractor.name} has no output {output!r}; {nearest(output, extractor.outputs)}"
            )
    moments = [Need("moments", output) for output in chosen]
    return [*moments, *(Need("rows", output) for output in chosen if output != "spatial")]
