"""The network of torch-fidelity's cases as a user's own extractor, registered as any other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from genlab.eval.extractors.base import EXTRACTORS, FeatureExtractor
from genlab.files import sha256

NAME = "golden-two-convolutions"

DEFINITION = (
    "x = uint8/127.5 - 1 (float32); conv1 3->8 kernel 3 stride 2 padding 1, relu; conv2 8->16 "
    "kernel 3 stride 2 padding 1, relu; adaptive average pool to 2x2; flatten in C,H,W order -> "
    "feat64; fc 64->10 -> logits. Layers: isc uses logits, fid/kid/prc use feat64"
)
"""What meta.json says of the network built here; another definition is another network."""


class TwoConvolutions(FeatureExtractor):
    """64 features and 10 logits."""

    name = NAME
    outputs: Mapping[str, int] = {"features": 64, "logits": 10}
    resize = "none"

    def __init__(self, path: Path) -> None:
        self.weights = load_file(path)
        self.weights_sha256 = sha256(path)

    def __call__(self, images: Tensor, outputs: Sequence[str] = ("features",)) -> dict[str, Tensor]:
        x = images.float() / 127.5 - 1
        for name in ("conv1", "conv2"):
            x = F.relu(F.conv2d(x, *self._layer(name), stride=2, padding=1))
        features = F.adaptive_avg_pool2d(x, 2).flatten(1)
        found = {"features": features, "logits": F.linear(features, *self._layer("fc"))}
        return {output: found[output] for output in outputs}

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    @property
    def device(self) -> torch.device:
        return self.weights["fc.bias"].device

    def to(self, device: torch.device | str) -> "TwoConvolutions":
        self.weights = {name: tensor.to(device) for name, tensor in self.weights.items()}
        return self


@EXTRACTORS.register(NAME)
def two_convolutions(weights: Path | None) -> TwoConvolutions:
    """Needs the weights of a case."""
    assert weights is not None
    return TwoConvolutions(weights)
