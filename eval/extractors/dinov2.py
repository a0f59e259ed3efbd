"""DINOv2: features that follow people's judgement more closely than Inception's, on any subject.

Needs the extra ``timm``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from typing_extensions import override

from genlab.checkpoints.weights import StateDict, read_state_dict
from genlab.errors import CheckpointError, DownloadError, EvaluationError
from genlab.eval.extractors.base import FeatureExtractor, check_call, exact_float32
from genlab.eval.extractors.resize import RESIZES, resize
from genlab.files import sha256
from genlab.saving.claims import check_state_dict

MODEL = "vit_large_patch14_dinov2.lvd142m"
REPOSITORY = f"timm/{MODEL}"
FILE = "model.safetensors"

IMAGE_SIZE = 224
PATCH_SIZE = 14

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's channels, in [0, 1]."""


class DinoV2(FeatureExtractor):
    """The class token of DINOv2's ViT-L/14 behind its last layer norm: 1024 features.

    Images are resized by Pillow's bicubic on 8 bits, as Stein et al. do. The weights were trained
    with 37x37 patches; timm resamples their position embeddings to 16x16 with antialias, Meta's
    code does it without, so scores of the two are close and not equal.

    Args:
        weights: a file in timm's names or in Meta's; None takes timm's from the hub or its cache.
        **architecture: other settings of timm's vision transformer (``depth``, ``embed_dim``,
            ``num_heads``); the name is ``dinov2-custom`` then.

    Raises:
        EvaluationError: timm is not installed.
        CheckpointError: the file is damaged or of another network.
        DownloadError: there is none, and it cannot be fetched.

    Source: Oquab et al. 2023, arXiv:2304.07193; as a metric: Stein et al. 2023, arXiv:2306.04675.
    """

    def __init__(self, weights: Path | None = None, **architecture: int) -> None:
        timm = _timm()
        path = _fetch() if weights is None else Path(weights)
        with torch.device("meta"):  # drawing 300 million numbers first would take ten seconds
            self.network: nn.Module = timm.create_model(
                MODEL, pretrained=False, num_classes=0, img_size=IMAGE_SIZE, **architecture
            )
        _load(self.network, path)
        self.network.requires_grad_(requires_grad=False).eval()
        self.name = "dinov2-custom" if architecture else "dinov2-vitl14"
        self.outputs = {"features": int(self.network.num_features)}
        self.resize = f"{RESIZES['pil-bicubic'].words} to {IMAGE_SIZE}x{IMAGE_SIZE}"
        self.weights_sha256 = sha256(path)

    @override
    def __call__(
        self, images: UInt8[Tensor, "B 3 H W"], outputs: Sequence[str] = ("features",)
    ) -> dict[str, Float[Tensor, "B _"]]:
        check_call(self, images, outputs)
        with torch.inference_mode(), exact_float32(self.device):
            features = self.network(normalised(images.to(self.device)))
        features = features.clone()  # outside the mode: an ordinary tensor
        return dict.fromkeys(outputs, features)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "DinoV2":
        """Move the network; returns the extractor itself."""
        self.network.to(device)
        return self


def normalised(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 224 224"]:
    """Images as the network takes them: resized, each channel with ImageNet's mean and scale."""
    x = resize(images, (IMAGE_SIZE, IMAGE_SIZE), "pil-bicubic") / 255
    mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std


def dinov2_vitl14(weights: Path | None = None) -> DinoV2:
    """DINOv2 ViT-L/14 with the official weights."""
    return DinoV2(weights)


def _timm() -> Any:
    try:
        import timm  # an extra: most people do without
    except ImportError as error:
        raise EvaluationError(
            "DINOv2 needs the package timm, which is not installed; "
            "pip install 'genlab[timm]' brings it"
        ) from error
    return timm


def _fetch() -> Path:
    """The hub's file, from its cache where it is there already."""
    try:
        return Path(hf_hub_download(REPOSITORY, FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DownloadError(
            f"DINOv2's weights ({FILE} of {REPOSITORY}) are neither in the hub's cache nor can "
            f"they be fetched ({type(error).__name__}); give the file as the extractor's weights"
        ) from error


def _load(network: nn.Module, path: Path) -> None:
    tensors = _in_timms_names(read_state_dict(path), network, path)
    check_state_dict(network.state_dict(), tensors, f"{path} as weights of DINOv2 ViT-L/14")
    if not all(value.isfinite().all() for value in tensors.values()):
        raise CheckpointError(
            f"{path} is damaged: it holds values that are not finite; fetch it again"
        )
    network.load_state_dict(tensors, assign=True)


def _in_timms_names(tensors: StateDict, network: nn.Module, path: Path) -> StateDict:
    """Meta's names to timm's, and position embeddings to this number of patches."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        return checkpoint_filter_fn(tensors, network)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} does not hold DINOv2's ViT-L/14: {str(error).splitlines()[0]}; give timm's "
            f"{FILE} of {REPOSITORY} or Meta's dinov2_vitl14_pretrain.pth"
        ) from error
