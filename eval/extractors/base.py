"""The contract of a feature extractor: uint8 RGB images in, named features out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from genlab.checkpoints.hub.fetch import locate
from genlab.errors import ConfigError, EvaluationError, UnknownNameError, nearest
from genlab.registry import Registry, class_path


class FeatureExtractor(ABC):
    """A frozen network that metrics look at images with.

    What goes in is uint8 and of any size: bringing images to the network's size and range is the
    extractor's business, and how it does so is part of every score.

    Features are deterministic: an image has the same ones (up to rounding) in every call, whatever
    the batch that it stands in. So the network is in evaluation mode and draws no random numbers,
    no normalisation looks at the batch, and the features are computed in float32 proper, whatever
    the caller has switched on (`exact_float32`). They carry no gradients.

    >>> class MeanColour(FeatureExtractor):
    ...     '''The mean of each channel, 0 to 1.'''
    ...
    ...     name, outputs, resize = "mean-colour", {"features": 3}, "none"
    ...     weights_sha256 = "none"  # of a file of weights: genlab.files.sha256(path)
    ...
    ...     def __init__(self, weights=None):
    ...         self._scale = torch.tensor(1 / 255)
    ...
    ...     def __call__(self, images, outputs=("features",)):
    ...         check_call(self, images, outputs)
    ...         with torch.inference_mode(), exact_float32(self.device):
    ...             features = images.to(self.device).float().mean((2, 3)) * self._scale
    ...         return {output: features.clone() for output in outputs}
    ...
    ...     @property
    ...     def device(self):
    ...         return self._scale.device
    ...
    ...     def to(self, device):
    ...         self._scale = self._scale.to(device)
    ...         return self
    >>> MeanColour()(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8))["features"].shape
    torch.Size([2, 3])

    It is registered by a builder, ``(weights: Path | None) -> FeatureExtractor``, which such a
    class itself is: under the entry point ``genlab.extractors``, or from a running program by
    ``@EXTRACTORS.register("mean-colour")``.

    Attributes:
        name: as it stands on the protocol card and in brackets behind a score: ``cnn-fmnist``.
        outputs: output -> its width. Every extractor has ``features``; some also have ``logits`` (a
            classifier's, without softmax) and ``spatial`` (flattened feature maps, for sFID).
        resize: how images get to the size that the network takes, in words.
        weights_sha256: hash of the weights in use.
        official: whether scores made with it carry the official names (FID, IS, sFID, KID); true
            for the whole Inception network of 2015-12-05 with its own weights and resize alone.
        class_names: of the logits, or None.
    """

    name: str
    outputs: Mapping[str, int]
    resize: str
    weights_sha256: str
    official: bool = False
    class_names: tuple[str, ...] | None = None

    @abstractmethod
    def __call__(
        self, images: UInt8[Tensor, "B 3 H W"], outputs: Sequence[str] = ("features",)
    ) -> dict[str, Float[Tensor, "B _"]]:
        """Compute features.

        Args:
            images: RGB, 0 to 255, any size, any number; grey images have three equal channels. On
                any device.
            outputs: names in `outputs`.

        Returns:
            Output -> (B, width), float32, finite, on the extractor's device; those asked for.

        Raises:
            EvaluationError: the images are of a size that the extractor does not take.
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network is, and where the images are put before each call."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "FeatureExtractor":
        """Move the network; returns the extractor itself.

        A builder makes it on the CPU, an evaluation moves it once, to the model's device.
        """

    def identity(self) -> dict[str, Any]:
        """All that its features depend on: part of every protocol and of every cache key.

        Plain JSON values. An extractor with more settings than these (a layer, a crop) adds them;
        else statistics made with other settings would meet in the cache and on the leaderboard.
        """
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "resize": self.resize,
        }


EXTRACTORS: Registry[Any] = Registry(
    "genlab.extractors",
    {
        "inception": "genlab.eval.extractors.inception:inception",
        "inception-clean": "genlab.eval.extractors.inception:inception_clean",
        "inception-legacy": "genlab.eval.extractors.inception:inception_legacy",
        "inception-768": "genlab.eval.extractors.inception:inception_768",
        "inception-192": "genlab.eval.extractors.inception:inception_192",
        "inception-64": "genlab.eval.extractors.inception:inception_64",
        "dinov2-vitl14": "genlab.eval.extractors.dinov2:dinov2_vitl14",
        "cnn": "genlab.eval.extractors.cnn:cnn",
        "cnn-fmnist": "genlab.eval.extractors.cnn:cnn_fmnist",
        "cnn-cifar10": "genlab.eval.extractors.cnn:cnn_cifar10",
    },
)
"""Name -> a builder ``(weights: Path | None) -> FeatureExtractor``; None finds or fetches them."""


def build_extractor(name: str, weights: Path | str | None = None) -> FeatureExtractor:
    """Make an extractor on the CPU.

    Args:
        name: in `EXTRACTORS`.
        weights: a local file, or of a small classifier its folder or ``owner/name`` of the hub;
            None takes the bundled or cached one, or fetches it with its checksum.

    Raises:
        UnknownNameError: there is none of this name.
        CheckpointError: the file is damaged or of another network.
        DownloadError: it is not here and cannot be fetched.
        ConfigError: what is registered builds something else.
    """
    extractor = EXTRACTORS[name](None if weights is None else Path(locate(str(weights))))
    if not isinstance(extractor, FeatureExtractor):
        raise ConfigError(
            f"the extractor {name!r} builds an object of the type {type(extractor).__name__}; "
            "register a builder (weights: Path | None) -> FeatureExtractor"
        )
    return extractor


def check_call(extractor: FeatureExtractor, images: Tensor, outputs: Sequence[str]) -> None:
    """Refuse what no extractor takes, in a sentence.

    Raises:
        EvaluationError: the images are not uint8 (B, 3, H, W).
        UnknownNameError: the extractor has no such output.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise EvaluationError(
            f"{extractor.name} takes uint8 RGB images (B, 3, H, W), got {images.dtype} "
            f"{tuple(images.shape)}; genlab.data.pixels.to_uint8 makes them of floats in [-1, 1]"
        )
    for output in outputs:
        if output not in extractor.outputs:
            raise UnknownNameError(
                f"{extractor.name} has no output {output!r}; {nearest(output, extractor.outputs)}"
            )


def check_features(
    extractor: FeatureExtractor, features: Any, outputs: Sequence[str], count: int
) -> None:
    """Refuse what no metric can read, in a sentence.

    Raises:
        EvaluationError: the features are not those that were asked for, one row for each image.
    """
    shapes = {output: (count, extractor.outputs[output]) for output in outputs}
    if not isinstance(features, Mapping):
        got: Any = class_path(type(features))
    else:
        got = {name: tuple(getattr(value, "shape", ())) for name, value in features.items()}
    if got != shapes:
        raise EvaluationError(
            f"the extractor {extractor.name} ({class_path(type(extractor))}) must return features "
            f"of the shapes {shapes}, got {got}"
        )


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Compute in float32 proper, whatever the caller has switched on: no autocast, no TF32.

    A score must not depend on such settings. Autocast belongs to a thread: enter it in each.
    """
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        backends: Any = torch.backends
        switches, name = [backends.cudnn, backends.cuda.matmul], "allow_tf32"
        off: bool | str = False
        if hasattr(backends.cudnn, "conv"):  # since PyTorch 2.9, which refuses a mixture of both
            switches, name, off = [backends.cudnn.conv, switches[1]], "fp32_precision", "ieee"
        kept = [getattr(switch, name) for switch in switches]
        try:
            for switch in switches:
                setattr(switch, name, off)
            yield
        finally:
            for switch, value in zip(switches, kept, strict=True):
                setattr(switch, name, value)
