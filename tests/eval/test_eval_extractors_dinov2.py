"""DINOv2 through timm: a real vision transformer, made small where it is not about the size."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from genlab.errors import CheckpointError, DownloadError, EvaluationError
from genlab.eval.extractors import dinov2
from genlab.eval.extractors.base import EXTRACTORS, build_extractor
from genlab.eval.extractors.dinov2 import MEAN, MODEL, STD, DinoV2, normalised
from genlab.files import sha256

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 64, "num_heads": 2}


def state(img_size: int = 224) -> dict[str, Tensor]:
    model = timm.create_model(MODEL, pretrained=False, num_classes=0, img_size=img_size, **SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "model.safetensors"
    with torch.random.fork_rng():
        save_file(state(), path)
    return path


def noise(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def test_features_are_the_class_token_of_timms_model(weights: Path) -> None:
    extractor = DinoV2(weights, **SMALL)
    model = timm.create_model(MODEL, pretrained=False, num_classes=0, img_size=224, **SMALL)
    timm.models.load_checkpoint(model, str(weights))
    images = noise(2, 30, 30)
    columns = []
    for image in images:  # the way of timm's and torchvision's transforms
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
        columns.append((torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(STD))
    x = torch.stack(columns).permute(0, 3, 1, 2)
    assert torch.allclose(normalised(images), x, atol=1e-6)
    with torch.no_grad():
        expected = model.eval().forward_features(x)[:, 0]  # type: ignore[operator]
    ours = extractor(images)["features"]
    assert torch.allclose(ours, expected, atol=1e-5)
    assert not ours.is_inference()
    assert extractor.outputs == {"features": 64}
    assert extractor.identity() == {
        "name": "dinov2-custom",
        "weights_sha256": sha256(weights),
        "resize": "antialiased bicubic on 8 bits (Pillow) to 224x224",
    }
    assert not extractor.official
    assert extractor.to("cpu").device == torch.device("cpu")


def test_more_patches_are_resampled(tmp_path: Path) -> None:
    tensors = state(img_size=518)
    assert tensors["pos_embed"].shape[1] == 1 + 37**2
    save_file(tensors, tmp_path / "large.safetensors")
    features = DinoV2(tmp_path / "large.safetensors", **SMALL)(noise(1))["features"]
    assert features.shape == (1, 64)
    assert features.isfinite().all()


def test_the_registered_one_is_large(weights: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit: missing: blocks\.2"):
        build_extractor("dinov2-vitl14", weights)


@pytest.mark.slow
def test_the_registered_one_gives_1024_features(tmp_path: Path) -> None:
    """300 M numbers, 1.2 GB."""
    model = timm.create_model(MODEL, pretrained=False, num_classes=0, img_size=224)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    extractor = build_extractor("dinov2-vitl14", path)
    path.unlink()  # pytest keeps its folders
    assert extractor.name == "dinov2-vitl14"
    assert extractor.outputs == {"features": 1024}
    assert extractor(noise(1))["features"].shape == (1, 1024)


def test_damaged_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        DinoV2(path, **SMALL)
    tensors = state()
    tensors["norm.bias"][3] = float("nan")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="not finite"):
        DinoV2(path, **SMALL)
    save_file({"pos_embed": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="does not hold DINOv2's"):
        DinoV2(path, **SMALL)


def test_without_timm_it_names_the_extra(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EvaluationError, match=r"pip install 'genlab\[timm\]'"):
        EXTRACTORS["dinov2-vitl14"](weights)


def test_without_a_network_it_asks_for_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="give the file as the extractor's weights"):
        dinov2.dinov2_vitl14()
