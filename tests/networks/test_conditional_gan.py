"""The plain conditional GAN: shapes, and what its switches of 2016 promise."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from genlab.errors import ConfigError
from genlab.networks.conditional_gan import (
    ConditionalDiscriminator,
    ConditionalGenerator,
    MinibatchDiscrimination,
    VirtualBatchNorm,
)


def generator(norm: str = "batch", **options: int) -> ConditionalGenerator:
    return ConditionalGenerator(
        16, 3, 1, channels=4, dim_z=5, label_dim=2, norm=norm, **{"num_reference": 7, **options}
    )


@pytest.mark.parametrize("norm", ["batch", "virtual", "none"])
@pytest.mark.parametrize("size", [8, 32])
def test_shapes_and_range(norm: str, size: int) -> None:
    network = ConditionalGenerator(size, 3, 2, channels=4, norm=norm)
    labels = torch.tensor([0, 2, 1, 1])
    images = network(torch.randn(4, network.dim_z), network.embed_labels(labels))
    assert images.shape == (4, 2, size, size)
    assert images.abs().max() < 1
    judge = ConditionalDiscriminator(size, 3, 2, channels=4, minibatch_kernels=2)
    assert judge(images, labels).shape == (4, 1)


def test_classes_can_be_mixed() -> None:
    network = generator().eval()
    pure = network.embed_labels(torch.tensor([0, 2]))
    half = network.embed_labels(torch.tensor([[0.5, 0.0, 0.5]]))
    assert torch.allclose(half[0], pure.mean(0))


def test_virtual_batch_norm_does_not_look_at_the_other_samples() -> None:
    network = generator("virtual")
    z, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    embedded = network.embed_labels(labels)
    together = network(z, embedded)
    alone = torch.cat([network(z[i : i + 1], embedded[i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-6)
    # Batch normalisation in training does look at them: this test can tell.
    mixed = generator("batch")
    embedded = mixed.embed_labels(labels)
    assert not torch.allclose(mixed(z, embedded)[:2], mixed(z[:2], embedded[:2]), atol=1e-3)


def test_virtual_batch_norm_by_its_definition() -> None:
    norm = VirtualBatchNorm(2, num_reference=3, eps=1e-5)
    x = torch.randn(5, 2, 4, 4) * 3 + 1
    out = norm(x)
    for row in (3, 4):
        batch = torch.cat([x[:3], x[row : row + 1]])
        mean, var = batch.mean((0, 2, 3)), batch.var((0, 2, 3), correction=0)
        expected = (x[row] - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
        assert torch.allclose(out[row], expected, atol=1e-5)
    reference = torch.nn.functional.batch_norm(x[:3], None, None, training=True)
    assert torch.allclose(out[:3], reference, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_virtual_batch_norm_of_large_means(dtype: torch.dtype) -> None:
    norm = VirtualBatchNorm(2, num_reference=3).to(dtype)
    x = (torch.randn(5, 2, 4, 4) + 300).to(dtype)
    expected = copy.deepcopy(norm).double()(x.double())
    assert torch.allclose(norm(x).double(), expected, rtol=1e-2 if dtype.itemsize == 2 else 1e-4)


def test_the_reference_batch_is_saved(tmp_path: Path) -> None:
    network = generator("virtual").eval()
    network.save_pretrained(tmp_path)
    again = ConditionalGenerator.from_pretrained(tmp_path)
    z, labels = torch.randn(2, 5), torch.tensor([0, 1])
    assert torch.equal(
        network(z, network.embed_labels(labels)), again(z, again.embed_labels(labels))
    )


def test_minibatch_discrimination_sees_duplicates() -> None:
    layer = MinibatchDiscrimination(20, num_kernels=4, kernel_dim=3)
    features = 5 * torch.randn(6, 20)
    apart = layer(features)
    features[3] = features[0]
    twins = layer(features)
    assert (twins[[0, 3]] > apart[[0, 3]] + 0.9).all()
    assert torch.allclose(layer(features[:1].expand(6, -1)), torch.full((6, 4), 5.0))
    assert torch.allclose(layer(features[:1]), torch.zeros(1, 4), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"img_resolution": 28}, "not of 28"),
        ({"img_resolution": 4}, "not of 4"),
        ({"norm": "layer"}, "norm must be one of batch, virtual, none"),
        ({"dim_z": 0}, "dim_z"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ConditionalGenerator(**{"img_resolution": 16, "num_classes": 3} | options)


def test_wrong_arguments_of_the_discriminator() -> None:
    with pytest.raises(ConfigError, match="minibatch_kernels"):
        ConditionalDiscriminator(16, 3, minibatch_kernels=-1)
