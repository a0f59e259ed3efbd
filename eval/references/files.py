"""Reference statistics on disk: three file layouts, read without executing anything.

- ``genlab``: safetensors with moments, features and labels of any extractor, and their provenance;
- ``edm``: npz with ``mu`` and ``sigma`` of Inception's 2048 features (EDM, pytorch-fid, clean-fid);
- ``adm``: npz with these, ``mu_s`` and ``sigma_s`` of the spatial features, and 10,000 images in
  ``arr_0`` (guided-diffusion's evaluator).
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import genlab
from genlab.data.sources.npy import read_array, read_headers
from genlab.errors import DataError, EvaluationError, OutputError, reason
from genlab.eval.metrics.base import FeatureSet
from genlab.eval.moments import Moments
from genlab.eval.samples import StoredImages
from genlab.files import atomic_path, sha256

Array = np.ndarray[Any, np.dtype[Any]]

LAYOUTS = ("genlab", "edm", "adm")
ADM_IMAGES = 10_000
"""Images that guided-diffusion's reference batches carry for precision and recall."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One set of real images, as metrics read it.

    Attributes:
        features: what was collected of it.
        identity: ``name``, ``pixels_sha256`` (or ``file_sha256`` where only the statistics are
            known) and ``count`` (None where the file does not say): part of the protocol.
        extractor: identity of the extractor that it was made with; None where the file does not
            say, which means Inception.
        image_size: of the images, where it is known.
        images: the images themselves, where they are at hand.
    """

    features: FeatureSet
    identity: Mapping[str, Any]
    extractor: Mapping[str, Any] | None
    image_size: int | None = None
    images: StoredImages | None = None


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics; an npz may hold images alone."""
    if path.suffix != ".npz":
        return path.suffix == ".safetensors"
    try:
        with zipfile.ZipFile(path) as archive:
            return "mu.npy" in archive.namelist()
    except Exception as error:  # what a damaged file makes zipfile raise cannot be listed
        raise EvaluationError(f"{path} cannot be read as npz: {reason(error)}") from error


def write_reference(path: Path, reference: Reference, layout: str = "genlab") -> None:
    """Write statistics, whole or not at all.

    Raises:
        EvaluationError: the layout is unknown or needs what the statistics lack.
        OutputError: the file cannot be written.
    """
    if layout == "genlab":
        _write_own(path, reference)
    elif layout in LAYOUTS:
        _write_npz(path, _npz_arrays(reference, layout))
    else:
        raise EvaluationError(f"there is no layout {layout!r}; known: {', '.join(LAYOUTS)}")


def read_reference(path: Path) -> Reference:
    """Read statistics of any layout.

    Raises:
        EvaluationError: the file is missing, damaged, or holds no statistics.
    """
    if not path.is_file():
        raise EvaluationError(f"there is no {path}; check the path of the reference")
    return _read_npz(path) if path.suffix == ".npz" else _read_own(path)


def _write_own(path: Path, reference: Reference) -> None:
    features = reference.features
    tensors: dict[str, Tensor] = {}
    for output, moments in features.moments.items():
        state = moments.state_dict().items()
        tensors |= {f"moments.{output}.{key}": value.cpu() for key, value in state}
    tensors |= {f"rows.{output}": rows.cpu() for output, rows in features.rows.items()}
    if features.labels is not None:
        tensors["labels"] = features.labels
    about = {
        "identity": dict(reference.identity),
        "extractor": None if reference.extractor is None else dict(reference.extractor),
        "image_size": reference.image_size,
        "count": features.count,
        "class_names": features.class_names,
        "made_by": f"genlab {genlab.__version__}",
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"genlab_reference": json.dumps(about, sort_keys=True)})


def _read_own(path: Path) -> Reference:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["genlab_reference"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        return _from_tensors(about, tensors)
    except Exception as error:  # of whatever kind: the file says what is in it
        raise EvaluationError(
            f"{path} is not a file of reference statistics, or damaged ({reason(error)}); make one "
            "with 'genlab eval reference'"
        ) from error


def read_identity(path: Path) -> Mapping[str, Any]:
    """What a file of GenLab's own layout calls its set; no statistics are read.

    Raises:
        EvaluationError: it is damaged or of another layout.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["genlab_reference"])
        identity: Mapping[str, Any] = about["identity"]
        return identity
    except Exception as error:  # of whatever kind: the file says what is in it
        raise EvaluationError(
            f"{path} is not a file of reference statistics ({reason(error)})"
        ) from error


def _from_tensors(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Reference:
    outputs = {name.split(".")[1] for name in tensors if name.startswith("moments.")}
    moments = {
        output: Moments.from_state(
            {key: tensors[f"moments.{output}.{key}"] for key in ("count", "mean", "scatter")}
        )
        for output in sorted(outputs)
    }
    rows = {n.removeprefix("rows."): t.float() for n, t in tensors.items() if n.startswith("rows.")}
    return Reference(
        features=FeatureSet(
            count=about["count"],
            moments=moments,
            rows=rows,
            labels=tensors.get("labels"),
            class_names=_class_names(about.get("class_names")),
        ),
        identity=about["identity"],
        extractor=about["extractor"],
        image_size=about["image_size"],
    )


def _class_names(value: Any) -> tuple[str, ...] | None:
    """The names of the classes; files from before they were kept have none."""
    return None if value is None else tuple(map(str, value))


def _npz_arrays(reference: Reference, layout: str) -> dict[str, Array]:
    moments = reference.features.moments
    needed = ("features", "spatial") if layout == "adm" else ("features",)
    for output in needed:
        if output not in moments:
            raise EvaluationError(f"the layout {layout} needs the moments of {output}")
    arrays = {
        "mu": moments["features"].mean.cpu().numpy(),
        "sigma": moments["features"].cov.cpu().numpy(),
    }
    if layout == "edm":
        return arrays
    if reference.images is None:
        raise EvaluationError("the layout adm carries images; make it from the real images")
    arrays["mu_s"] = moments["spatial"].mean.cpu().numpy()
    arrays["sigma_s"] = moments["spatial"].cov.cpu().numpy()
    count = reference.images.count
    # Every k-th image: sets are sorted by class, and the first images would be of one class.
    chosen = np.linspace(0, count - 1, min(count, ADM_IMAGES)).round().astype(int)
    pixels = [reference.images.read(i, i + 1).images[0] for i in chosen.tolist()]
    arrays["arr_0"] = torch.stack(pixels).permute(0, 2, 3, 1).numpy()
    return arrays


def _write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    if path.suffix != ".npz":
        raise OutputError(f"{path}: this layout is an npz file; let the name end in .npz")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read_npz(path: Path) -> Reference:
    try:
        names = set(read_headers(path))
        keys = ("mu", "sigma", "mu_s", "sigma_s")
        arrays = {name: read_array(path, name) for name in keys if name in names}
    except DataError as error:
        raise EvaluationError(f"{path} cannot be read as npz: {error}") from error
    if not {"mu", "sigma"} <= arrays.keys():
        listed = ", ".join(sorted(names)) or "nothing"
        raise EvaluationError(
            f"{path} holds no statistics (mu and sigma), but {listed}; give a file of EDM's, "
            "pytorch-fid's or guided-diffusion's layout, or images"
        )
    moments = {"features": _foreign(arrays["mu"], arrays["sigma"], path)}
    if {"mu_s", "sigma_s"} <= arrays.keys():
        moments["spatial"] = _foreign(arrays["mu_s"], arrays["sigma_s"], path)
    count = moments["features"].count
    return Reference(
        features=FeatureSet(count=count, moments=moments),
        identity={"name": path.name, "file_sha256": sha256(path), "count": None},
        extractor=None,
        images=StoredImages(path) if "arr_0" in names else None,
    )


def _foreign(mean: Array, cov: Array, path: Path) -> Moments:
    if mean.dtype.kind not in "fiu" or cov.dtype.kind not in "fiu":
        raise EvaluationError(
            f"{path}: mu is of type {mean.dtype}, sigma of {cov.dtype}, no numbers"
        )
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise EvaluationError(
            f"{path}: mu {mean.shape} and sigma {cov.shape} are no mean and covariance"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise EvaluationError(f"{path}: the statistics hold values that are not finite")
    # The file does not say how many images it was made of; more than the features have numbers is
    # what a covariance of full rank needs.
    count = len(mean) + 1
    return Moments.from_statistics(
        count, torch.from_numpy(mean).double(), torch.from_numpy(cov).double()
    )
