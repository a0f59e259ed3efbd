"""The small residual classifier."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks import ClassifierCNN


def tiny(**options: Any) -> ClassifierCNN:
    settings: dict[str, Any] = {
        "img_resolution": 16,
        "in_channels": 3,
        "num_classes": 5,
        "channels": [8, 16],
    }
    return ClassifierCNN(**{**settings, **options}).eval()


@pytest.mark.parametrize(
    ("options", "spatial", "width"),
    [
        ({}, (16, 4, 4), 16),
        ({"patch_size": 1}, (16, 8, 8), 16),
        ({"channels": [8, 12, 16], "num_blocks": 2}, (12, 4, 4), 16),
        ({"channels": [8], "in_channels": 1, "img_resolution": 12}, (8, 6, 6), 8),
    ],
)
def test_shapes(options: dict[str, object], spatial: tuple[int, int, int], width: int) -> None:
    network = tiny(**options)
    x = torch.randn(2, network.in_channels, network.img_resolution, network.img_resolution)
    embedding = network.embed(x)
    assert embedding.spatial.shape[1:] == spatial == network.spatial_shape
    assert embedding.pooled.shape == (2, width)
    assert (embedding.pooled >= 0).all()
    logits = network(x)
    assert logits.shape == (2, 5)
    assert torch.equal(logits, network.classify(embedding.pooled))


def test_blocks_begin_as_the_identity() -> None:
    network = tiny()
    x = torch.rand(2, 8, 8, 8)  # a block gets what comes out of a ReLU
    assert torch.equal(network.levels[0](x), x)


def test_every_weight_gets_a_gradient() -> None:
    network = tiny(num_blocks=2).train()
    for parameter in network.parameters():  # the last convolutions begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    x, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(network(x), labels).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_an_image_does_not_see_its_batch() -> None:
    network = trained()
    x = torch.randn(5, 3, 16, 16)
    alone = torch.cat([network(image[None]) for image in x])
    # Kernels may sum in another order for another batch size: some roundings of float32 (6e-8).
    assert torch.allclose(alone, network(x), rtol=1e-5, atol=1e-5)


def trained(**options: object) -> ClassifierCNN:
    """Weights and running statistics that are not those of the start."""
    network = tiny(**options).train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for _ in range(3):
        network(2 * torch.randn(8, 3, 16, 16) + 1)
    return network.eval()


def test_folding_changes_nothing_but_rounding() -> None:
    network = trained(num_blocks=2)
    x = torch.randn(4, 3, 16, 16)
    expected = network(x)
    assert network.fold() is network
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    # Five layers, each rounded otherwise.
    assert torch.allclose(network(x), expected, rtol=1e-4, atol=1e-4)
    again = network(x)
    assert torch.equal(network.fold()(x), again)


def test_dropout_acts_in_training_only() -> None:
    network = tiny(dropout=0.5)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


def test_save_and_load(tmp_path: Path) -> None:
    network = trained(class_names=["a", "b", "c", "d", "e"])
    network.save_pretrained(tmp_path)
    again = ClassifierCNN.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 16, 16)
    # Loaded weights lie elsewhere in memory, which matrix libraries may round by.
    assert torch.allclose(network(x), again(x), rtol=1e-5, atol=1e-5)
    assert again.config["class_names"] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_classes": 1}, "at least 2 classes"),
        ({"dropout": 1.0}, "dropout"),
        ({"patch_size": 3}, "no multiple of patch_size 3"),
        ({"img_resolution": 18}, "halved"),
        ({"channels": []}, "channels"),
        ({"class_names": ["a"]}, "1 class names for 5"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        tiny(**options)
