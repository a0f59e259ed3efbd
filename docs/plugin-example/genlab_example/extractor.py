"""An extractor without weights: colours of a thumbnail."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from genlab.eval.extractors.base import FeatureExtractor, check_call, exact_float32

SIZE = 4


class Thumbnail(FeatureExtractor):
    """The image averaged to 4x4 pixels, 0 to 1: enough for a first look, and done at once."""

    name = "thumbnail"
    outputs: Mapping[str, int] = {"features": 3 * SIZE * SIZE}
    resize = f"averaged to {SIZE}x{SIZE}"
    weights_sha256 = "none"

    def __init__(self, weights: Path | None = None) -> None:
        self._device = torch.device("cpu")

    def __call__(self, images: Tensor, outputs: Sequence[str] = ("features",)) -> dict[str, Tensor]:
        """See `FeatureExtractor.__call__`."""
        check_call(self, images, outputs)
        with torch.inference_mode(), exact_float32(self.device):
            pixels = images.to(self.device).float() / 255
            features = F.adaptive_avg_pool2d(pixels, SIZE).flatten(1)
        return {output: features.clone() for output in outputs}

    @property
    def device(self) -> torch.device:
        """See `FeatureExtractor.device`."""
        return self._device

    def to(self, device: torch.device | str) -> "Thumbnail":
        """See `FeatureExtractor.to`."""
        self._device = torch.device(device)
        return self
