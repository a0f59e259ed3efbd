"""The Inception network of 2015-12-05, which FID, IS, sFID and KID are defined with.

Its leading layers alone serve where only they are at hand; their scores carry other names.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from typing_extensions import override

from genlab import compute
from genlab.eval.extractors.base import FeatureExtractor, check_call, exact_float32
from genlab.eval.extractors.inception_network import IMAGE_SIZE, OUTPUTS, InceptionNetwork
from genlab.eval.extractors.inception_weights import (
    LAST,
    PARTIAL_SHA256,
    SHA256,
    find_weights,
    read_weights,
)
from genlab.eval.extractors.resize import RESIZES, resize
from genlab.files import sha256

SCALES = {"tf1": (128.0, 128.0), "clean": (128.0, 128.0), "legacy": (127.5, 127.5)}
"""Resize -> what pixels are shifted and divided by after it, as in the projects they come from."""

CPU_IMAGES = 4
"""Images that a thread works on at a time. Threads that each do whole images took 0.86 of the time
of threads that share every operation (Intel Xeon, 2 cores, batch 16); on one thread 1 image at a
time took 1.12 of the time of 4, and 16 took 1.05."""


class Inception(FeatureExtractor):
    """Features of Inception-2015-12-05.

    Outputs: ``features``; from 768 on ``spatial`` (7 channels of 17x17 pixels of Mixed_6d, for
    sFID); of the whole network ``logits`` (1008, without their bias, as the Inception Score is
    defined); and the features of the layers passed on the way, ``64``, ``192``, ``768``.

    The name is ``inception`` for the whole network and ``inception-768`` and so on for its leading
    layers; ``-clean`` or ``-legacy`` behind it tells another resize, ``-custom`` weights that are
    not the official ones.

    Args:
        weights: a file in torch-fidelity's names; None takes the official one from the cache or
            fetches it. A file with the leading layers will do where they are enough.
        features: ``2048``, ``768``, ``192`` or ``64``: width of the features, which tells the
            layer.
        resize: ``tf1`` (what the name FID stands for), ``clean`` (clean-fid) or ``legacy``
            (pytorch-fid).

    Raises:
        CheckpointError: the file is damaged, of another network, or ends too early.
        DownloadError: there is none, and it cannot be fetched.

    Source: Szegedy et al. 2016, arXiv:1512.00567; as a metric: Heusel et al. 2017,
    arXiv:1706.08500.
    """

    def __init__(
        self, weights: Path | None = None, features: str = "2048", resize: str = "tf1"
    ) -> None:
        path = find_weights() if weights is None else Path(weights)
        self.network = InceptionNetwork(read_weights(path, features), LAST[features])
        self.weights_sha256 = sha256(path)
        has_official_weights = self.weights_sha256 in (SHA256, PARTIAL_SHA256)
        self.official = self.weights_sha256 == SHA256 and (features, resize) == ("2048", "tf1")
        parts = ("inception", features, resize, "custom")
        shown = (True, features != "2048", resize != "tf1", not has_official_weights)
        self.name = "-".join(part for part, show in zip(parts, shown, strict=True) if show)
        self._resize = resize
        self.resize = f"{RESIZES[resize].words} to {IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}"
        deepest = list(OUTPUTS)[: list(OUTPUTS).index(LAST[features]) + 1]
        self._layers = {"features": features} | {name: name for name in deepest if name != features}
        self.outputs = {name: OUTPUTS[layer][1] for name, layer in self._layers.items()}
        self.to("cpu")

    @override
    def __call__(
        self, images: UInt8[Tensor, "B 3 H W"], outputs: Sequence[str] = ("features",)
    ) -> dict[str, Float[Tensor, "B _"]]:
        check_call(self, images, outputs)
        images = images.to(self.device)
        with exact_float32(self.device):
            if self.device.type != "cpu":
                parts = [self._run(images, outputs)]
            else:
                threads, pieces = torch.get_num_threads(), images.split(CPU_IMAGES)
                run = map if threads == 1 or len(pieces) == 1 else compute.workers(threads).map
                parts = list(run(lambda piece: self._run(piece, outputs), pieces))
        return {output: torch.cat([part[output] for part in parts]) for output in outputs}

    @torch.inference_mode()
    def _run(self, images: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, enabled=False):  # modes belong to a thread
            shift, scale = SCALES[self._resize]
            x = resize(images, IMAGE_SIZE, self._resize).sub_(shift).div_(scale)
            x = x.contiguous(memory_format=self._memory_format)
            layers = {self._layers[output]: output for output in outputs}
            values = self.network(x, layers)
            return {output: values[layer] for layer, output in layers.items()}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "Inception":
        """Move the network; returns the extractor itself."""
        self.network.to(device)
        plan = compute.choose(self.device)
        plan.prepare(self.network)
        self._memory_format = plan.memory_format
        return self


def inception(weights: Path | None = None) -> Inception:
    """The whole network: FID, IS, sFID, KID."""
    return Inception(weights)


def inception_clean(weights: Path | None = None) -> Inception:
    """The whole network behind clean-fid's resize."""
    return Inception(weights, resize="clean")


def inception_legacy(weights: Path | None = None) -> Inception:
    """The whole network behind pytorch-fid's resize."""
    return Inception(weights, resize="legacy")


def inception_768(weights: Path | None = None) -> Inception:
    """The layers up to Mixed_6e."""
    return Inception(weights, features="768")


def inception_192(weights: Path | None = None) -> Inception:
    """The layers up to the second pooling."""
    return Inception(weights, features="192")


def inception_64(weights: Path | None = None) -> Inception:
    """The layers up to the first pooling."""
    return Inception(weights, features="64")
