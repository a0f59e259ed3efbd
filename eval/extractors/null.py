"""The null extractor: for metrics that read no features."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from typing_extensions import override

from genlab.errors import EvaluationError
from genlab.eval.extractors.base import FeatureExtractor


class NullExtractor(FeatureExtractor):
    """Stands on the protocol card where no metric reads features, and has no weights to be fetched.

    Args:
        device: that others compute on.
    """

    name = "none"
    outputs: Mapping[str, int] = MappingProxyType({})
    resize = "none"
    weights_sha256 = "none"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    @override
    def __call__(self, images: Tensor, outputs: Sequence[str] = ()) -> dict[str, Tensor]:
        """Compute features.

        Raises:
            EvaluationError: an output is asked for.
        """
        if outputs:
            raise EvaluationError(f"the null extractor has no output {outputs[0]!r}")
        return {}

    @property
    def device(self) -> torch.device:
        """Where others compute."""
        return self._device

    def to(self, device: torch.device | str) -> "NullExtractor":
        """Stand for another device."""
        return NullExtractor(device)
