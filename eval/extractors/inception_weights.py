"""Inception's weights: found, downloaded and checked."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from genlab.checkpoints.weights import StateDict, read_state_dict
from genlab.checkpoints.zoo.catalogue import home
from genlab.checkpoints.zoo.download import download
from genlab.errors import CheckpointError, DownloadError
from genlab.eval.extractors.inception_network import OUTPUTS, official_layers
from genlab.saving.claims import check_state_dict

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
"""What torch-fidelity 0.4 fetches: 566 tensors, 95,628,359 bytes."""

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of that file. Its name carries the first eight digits; the rest is as several projects published
it independently."""

PARTIAL_SHA256 = "5c4cbf6b9ca63b84b370d1697205e2773603bcad7136cf42cd5a28f0821cc88b"
"""Of the leading layers of the same network, up to Mixed_6e, with batch norms folded in."""

URL_VARIABLE = "GENLAB_INCEPTION_URL"
"""Environment variable with the address of a mirror."""

LAST = {"64": "64", "192": "192", "768": "768", "2048": "logits"}
"""Features -> the deepest output of the extractor that is named after them."""


def find_weights(url: str | None = None) -> Path:
    """The official file in the cache (``GENLAB_HOME``), fetched first if it is not there.

    Args:
        url: a mirror; None takes the one in ``GENLAB_INCEPTION_URL``, else torch-fidelity's
            address. The checksum is the same for all.

    Raises:
        DownloadError: it cannot be fetched, or is not the expected file.
        OutputError: the cache cannot be written.
    """
    url = url or os.environ.get(URL_VARIABLE) or URL
    path = home() / "extractors" / "weights-inception-2015-12-05-6726825d.pth"
    try:
        download(url, path, checksum=SHA256)
    except DownloadError as error:
        reason = str(error).partition(";")[0]
        raise DownloadError(
            f"Inception's weights are missing: {reason}; put the file at {path}, give it as the "
            f"extractor's weights, or set {URL_VARIABLE} to a mirror"
        ) from error
    return path


def read_weights(path: Path, features: str) -> StateDict:
    """Read a file of Inception's weights and see that it holds the layers wanted.

    Args:
        path: whole or leading layers, in the names of torch-fidelity and pytorch-fid.
        features: a key of `LAST`.

    Raises:
        CheckpointError: damaged, of another network, or ending too early.
    """
    tensors = read_state_dict(path)
    where = f"{path} as weights of Inception-2015-12-05"
    layers = _official_tensors()
    official = {key: value for tensors_of in layers.values() for key, value in tensors_of.items()}
    present = [name for name, own in layers.items() if all(key in tensors for key in own)]
    names = list(layers)
    needed = names[: names.index(OUTPUTS[LAST[features]][0]) + 1]
    begun = {key.partition(".")[0] for key in tensors}
    if present == names[: len(present)] and begun == set(present) and len(present) < len(needed):
        raise CheckpointError(_too_short(path, present, features))
    expected = {key: value for name in needed for key, value in layers[name].items()}
    ignored = {key for key in tensors if key.endswith(".bn.num_batches_tracked")}
    expected |= {key: official[key] for key in tensors if key in official}
    check_state_dict(expected, {k: v for k, v in tensors.items() if k not in ignored}, where)
    for key in expected:
        if not tensors[key].isfinite().all():
            raise CheckpointError(
                f"{path} is damaged: {key} holds values that are not finite; fetch it again"
            )
    return tensors


def _official_tensors() -> dict[str, Mapping[str, Tensor]]:
    """Layer -> its tensors, without the counters that are of no use."""
    return {
        name: {
            f"{name}.{key}": value
            for key, value in layer.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        for name, layer in official_layers().items()
    }


def _too_short(path: Path, present: list[str], features: str) -> str:
    extractor = "inception" if features == "2048" else f"inception-{features}"
    usable = [f"inception-{key}" for key in ("64", "192", "768") if OUTPUTS[key][0] in present]
    advice = f"use {usable[-1]}" if usable else "give the whole file"
    return f"{path} is too short for {extractor}: this file ends at {present[-1]}; {advice}"
