"""A real feature extractor that answers at once: two fixed convolutions and a linear layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.eval.extractors.base import EXTRACTORS, FeatureExtractor


class TinyExtractor(FeatureExtractor):
    """8 features, 5 logits; the weights follow from a seed."""

    name = "tiny"
    outputs: Mapping[str, int] = {"features": 8, "logits": 5}
    resize = "none"

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            first, second = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 3, stride=2)
            self.head = nn.Linear(8, 5)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.network = nn.ModuleList([self.layers, self.head])
        self.network.requires_grad_(requires_grad=False)
        self.weights_sha256 = f"{seed:064x}"

    def __call__(self, images: Tensor, outputs: Sequence[str] = ("features",)) -> dict[str, Tensor]:
        features = self.layers(images.float() / 127.5 - 1).mean((2, 3))
        found = {"features": features, "logits": self.head(features)}
        return {name: found[name] for name in outputs}

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def to(self, device: Any) -> "TinyExtractor":
        self.network.to(device)
        return self


if "tiny" not in EXTRACTORS:

    @EXTRACTORS.register("tiny")
    def tiny(weights: Path | None) -> TinyExtractor:
        """Registered as a third party would; a weights file holds the seed."""
        return TinyExtractor(0 if weights is None else int(weights.read_text()))
