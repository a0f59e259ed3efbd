"""The small classifiers as extractors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.errors import CheckpointError, EvaluationError, UnknownNameError
from genlab.eval.extractors.base import build_extractor
from genlab.eval.extractors.cnn import WEIGHTS, CNNExtractor, bundled_classifier
from genlab.eval.samples import as_rgb
from genlab.networks import ClassifierCNN

NAMES = ("cnn-fmnist", "cnn-cifar10")
COUNT = 2000
STATED = {"cnn-fmnist": 0.9230, "cnn-cifar10": 0.8264}
"""Accuracy on the whole test set, as the cards say it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier as ``genlab train export`` writes it."""
    torch.manual_seed(0)
    network: Any = ClassifierCNN(16, 3, 4, channels=[8, 12, 16], class_names=["a", "b", "c", "d"])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network(torch.randn(16, 3, 16, 16))  # running statistics
    path = tmp_path_factory.mktemp("cnn")
    network.half().save_pretrained(path)
    return path


def images(count: int = 6, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Folding, memory format and batch size round otherwise, layer by layer."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_outputs_are_what_the_network_sees(folder: Path) -> None:
    extractor = build_extractor("cnn", folder)
    assert extractor.outputs == {"features": 16, "logits": 4, "spatial": 8 * 4 * 4}
    assert extractor.class_names == ("a", "b", "c", "d")
    x = images()
    found = extractor(x, ("features", "logits", "spatial"))
    for output, width in extractor.outputs.items():
        assert found[output].shape == (6, width)
        assert found[output].dtype == torch.float32
    network: Any = ClassifierCNN.from_pretrained(folder)
    network.float().eval()
    embedding = network.embed(from_uint8(x))
    assert_close(found["features"], embedding.pooled.detach())
    assert_close(found["logits"], network(from_uint8(x)).detach())
    spatial = embedding.spatial[:, :8].flatten(1).detach()
    assert_close(found["spatial"], spatial)
    assert list(extractor(x)) == ["features"]


def test_the_batch_changes_nothing_but_rounding(folder: Path) -> None:
    extractor = build_extractor("cnn", folder)
    x = images(60)
    whole = extractor(x)["features"]
    assert torch.equal(whole, extractor(x)["features"])
    parts = torch.cat([extractor(part)["features"] for part in x.split(7)])
    assert_close(whole, parts)


def test_autocast_outside_changes_nothing(folder: Path) -> None:
    extractor = build_extractor("cnn", folder)
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        inside = extractor(x)["features"]
    assert torch.equal(inside, extractor(x)["features"])


def test_other_sizes_are_refused(folder: Path) -> None:
    extractor = build_extractor("cnn", folder)
    assert extractor.resize == "none: takes 16x16 only"
    with pytest.raises(EvaluationError, match="images of 16x16, these are 14x14"):
        extractor(images(2, 14))
    with pytest.raises(UnknownNameError, match="did you mean 'features'"):
        extractor(images(), ("feature",))


@pytest.mark.parametrize("name", NAMES)
def test_bundled(name: str) -> None:
    extractor = build_extractor(name)
    assert extractor.name == name
    assert extractor.outputs["logits"] == 10
    assert extractor.outputs["spatial"] == 512
    assert extractor.class_names is not None
    assert len(extractor.class_names) == 10
    found = extractor(images(3, 32), ("features", "logits", "spatial"))
    assert all(rows.isfinite().all() for rows in found.values())
    path = bundled_classifier(name)
    assert (path / WEIGHTS).stat().st_size <= 1_500_000
    assert {"README.md", "config.json", "log.jsonl", "train.yaml", WEIGHTS} == {
        entry.name for entry in path.iterdir()
    }
    for text in (entry.read_text() for entry in path.iterdir() if entry.suffix != ".safetensors"):
        assert "/tmp" not in text
        assert "shared/" not in text


def test_own_weights_do_not_pass_for_the_bundled(folder: Path) -> None:
    bundled = build_extractor("cnn-fmnist")
    same = build_extractor("cnn-fmnist", bundled_classifier("cnn-fmnist"))
    own = build_extractor("cnn-fmnist", folder)
    assert same.identity() == bundled.identity()
    assert own.name == "cnn-fmnist-custom"
    assert own.weights_sha256 != bundled.weights_sha256


def _accuracy(name: str, dataset: ImageDataset) -> float:
    pixels, labels = dataset.load_all()
    chosen = torch.linspace(0, len(pixels) - 1, COUNT).round().long()
    logits = build_extractor(name)(as_rgb(pixels[chosen]), ("logits",))["logits"]
    return float((logits.argmax(1) == labels[chosen]).double().mean())


def _tolerance(accuracy: float) -> float:
    """Three standard deviations of the accuracy on `COUNT` images."""
    return 3 * (accuracy * (1 - accuracy) / COUNT) ** 0.5


def test_fashion_mnist_is_recognised(fashion_mnist: Path) -> None:
    dataset = ImageDataset(fashion_mnist, image_size=32, fit="pad", split="test")
    stated = STATED["cnn-fmnist"]
    assert _accuracy("cnn-fmnist", dataset) >= stated - _tolerance(stated)


def test_cifar10_is_recognised(cifar_zip: Path) -> None:
    path = cifar_zip.with_name("cifar10-test-a.zip")
    if not path.exists():
        pytest.skip(f"no {path.name} in the folder of shared data")
    stated = STATED["cnn-cifar10"]
    assert _accuracy("cnn-cifar10", ImageDataset(path)) >= stated - _tolerance(stated)


@pytest.mark.parametrize("name", NAMES)
def test_cards_state_the_accuracy(name: str) -> None:
    card = (bundled_classifier(name) / "README.md").read_text()
    assert f"| Accuracy | {STATED[name]:.2%} on " in card


def _copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no classifier"):
        build_extractor("cnn", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="--weights"):
        build_extractor("cnn")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "SongUNet"}, "describes no ClassifierCNN"),
        ({"num_classes": 5, "class_names": None}, "does not fit"),
        ({"num_classes": 1}, "is damaged"),
        ({"colour": 1}, "is damaged"),
        ({"in_channels": 1}, "data.channels=3"),
        ({"channels": [10**6, 10**6]}, "does not fit"),  # terabytes, which nothing asks for
        ({"num_blocks": 10**6}, "claims more layers"),
        ({"num_classes": 10**9}, "more than any network has"),
    ],
)
def test_a_wrong_config_is_named(
    folder: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    copy = _copy(folder, tmp_path)
    config = copy / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(CheckpointError, match=named):
        CNNExtractor(copy, "mine")


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path)
    tensors = load_file(copy / WEIGHTS)
    tensors.pop("head.bias")
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"missing: head\.bias"):
        CNNExtractor(copy, "mine")
    (copy / WEIGHTS).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        CNNExtractor(copy, "mine")
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        CNNExtractor(copy, "mine")
