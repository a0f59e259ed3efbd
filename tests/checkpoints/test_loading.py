"""`genlab.load`: names, folders and official files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from network_pickles import official_weights, write_network
from safetensors.torch import save_file

import genlab
from genlab.checkpoints.bundled import bundled_folder, bundled_metadata, bundled_names
from genlab.checkpoints.classifiers import is_classifier, load_classifier
from genlab.diffusion.preconditioning import EDM
from genlab.errors import CheckpointError, UnknownNameError
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kwargs, weights = official_weights("VPPrecond", label_dropout=0.1)
    save_file(weights, tmp_path / "w.safetensors")
    config = {"cls": "VPPrecond", "kwargs": kwargs}
    genlab.convert(tmp_path / "w.safetensors", config=config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folder_gives_the_same_images(folder: Path) -> None:
    loaded: Any = genlab.load(folder)
    again: Any = genlab.load(str(folder), dtype=torch.float64)
    assert loaded.has_null_class
    assert again.dtype == torch.float64
    assert loaded.preconditioning.name == "vp"
    sampler = {"schedule": {"num_steps": 3}}
    images = loaded.sample(seeds=[0, 1], labels=[2, 0], sampler=sampler)
    assert images.shape == (2, 3, 8, 8)
    torch.testing.assert_close(
        again.sample(seeds=[0, 1], labels=[2, 0], sampler=sampler).float(),
        images,
        rtol=0,
        atol=1e-4,
    )


def test_official_file(tmp_path: Path) -> None:
    kwargs, weights = official_weights("EDMPrecond")
    file = write_network(tmp_path / "net.pkl", "EDMPrecond", weights, kwargs)
    assert genlab.load(file, device="cpu").num_classes == 3


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="there is no model 'edm-fmnits'"):
        genlab.load("edm-fmnits")
    with pytest.raises(CheckpointError, match=r"no file or folder .*absent"):
        genlab.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"there is no file or folder absent\.pkl"):
        genlab.load("absent.pkl")
    with pytest.raises(CheckpointError, match=r"it has no model_index\.json"):
        genlab.load(tmp_path)
    with pytest.raises(CheckpointError, match="'genlab zoo pull edm-cifar10-32x32-cond-vp'"):
        genlab.load("edm-cifar10-32x32-cond-vp")


def test_classifier_draws_nothing(tmp_path: Path) -> None:
    network = ADMClassifier(
        img_resolution=8,
        in_channels=1,
        num_classes=3,
        model_channels=32,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(8,),
        num_head_channels=32,
    )
    NoisyClassifier(network, EDM()).save_pretrained(tmp_path / "judge")
    with pytest.raises(CheckpointError, match=r"judge is a classifier .* sampler\.guidance="):
        genlab.load(tmp_path / "judge")


def test_truncated_weights_in_a_folder(folder: Path) -> None:
    weights = folder / "network" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        genlab.load(folder)


def test_bundled_models() -> None:
    """Every bundled model is known by name and states its facts without being loaded."""
    for name in bundled_names():
        metadata = bundled_metadata(name)
        assert metadata["name"] == name
        assert metadata["licence"]
        assert (bundled_folder(name) / "README.md").is_file()
        loader = load_classifier if is_classifier(bundled_folder(name)) else genlab.load
        model = loader(name)
        assert model.num_classes == metadata["classes"]
        assert "x".join(map(str, model.image_shape)) == metadata["images"]
    with pytest.raises(UnknownNameError, match="no bundled model 'nothing'"):
        bundled_folder("nothing")


def test_card_of_a_bundled_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts come from the header that model hubs read, and from the network's config."""
    header = "license: apache-2.0\ndatasets: [fashion-mnist]"
    (folder / "README.md").write_text(f"---\n{header}\n---\n\n# model\n\nlicense: no\n")
    monkeypatch.setattr("genlab.checkpoints.bundled.bundled_folder", lambda name: folder)
    metadata = bundled_metadata("model")
    assert metadata["licence"] == "apache-2.0"
    assert metadata["data"] == "fashion-mnist"
    assert (metadata["images"], metadata["classes"]) == ("3x8x8", 3)
    (folder / "README.md").write_text("# no header\n\nlicense: none\n")
    assert bundled_metadata("model")["licence"] == ""
