"""BigGAN and BigGAN-deep: published sizes, shapes, mixed classes, what constructors refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError, LabelError
from genlab.networks.base import Labels
from genlab.networks.biggan import BigGANDiscriminator, BigGANGenerator
from genlab.networks.biggan_deep import BigGANDeepDiscriminator, BigGANDeepGenerator
from genlab.networks.biggan_deep_hf import BigGANDeepHF, IndexedBatchNorm
from genlab.networks.gan_base import GeneratorNetwork
from genlab.networks.layers.gan_layers import MOMENTUM, BatchNorm, SelfAttention

TINY: dict[str, Any] = {"img_resolution": 32, "num_classes": 3, "channels": 4}
HF_TINY: dict[str, Any] = {
    "img_resolution": 16,
    "num_classes": 3,
    "channels": 4,
    "dim_z": 5,
    "layers": [(True, 16, 8), (False, 8, 4), (True, 4, 2), (False, 2, 1)],
    "attention_position": 1,
}


def make(name: str) -> GeneratorNetwork:
    makers: dict[str, Callable[[], GeneratorNetwork]] = {
        "biggan": lambda: BigGANGenerator(**TINY, dim_z=8, shared_dim=6, attn_resolutions=(16,)),
        "without shared": lambda: BigGANGenerator(
            **TINY, dim_z=8, shared_embedding=False, hierarchical=False, own_batch_norm=True
        ),
        "deep": lambda: BigGANDeepGenerator(**TINY, dim_z=8, depth=3, attn_resolutions=(8,)),
        "hf": lambda: BigGANDeepHF(**HF_TINY),
    }
    return makers[name]()


NAMES = ("biggan", "without shared", "deep", "hf")


@pytest.mark.parametrize(
    ("cls", "arguments", "millions"),
    [
        (BigGANGenerator, {"channels": 96, "dim_z": 120, "shared_dim": 128}, 70.4),
        (BigGANDiscriminator, {"channels": 96}, 88.0),
        # The last convolution of the published one has 128 outputs, of which 3 are the image.
        (BigGANDeepGenerator, {"channels": 128, "dim_z": 128, "shared_dim": 128}, 50.4 - 0.145),
        (BigGANDeepDiscriminator, {"channels": 128}, 34.6),
    ],
)
def test_published_sizes(cls: type[nn.Module], arguments: dict[str, Any], millions: float) -> None:
    """Brock et al. 2018: parameters at 128x128 with 1000 classes and attention at 64x64."""
    with torch.device("meta"):
        network = cls(img_resolution=128, num_classes=1000, attn_resolutions=(64,), **arguments)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_published_size_of_the_released_generator() -> None:
    with torch.device("meta"):
        network = BigGANDeepHF()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(50.4, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_of_the_right_shape(name: str) -> None:
    network = make(name)
    for _ in range(3):  # the released layout makes sense only with vectors that have converged
        network(torch.randn(2, network.dim_z), network.embed_labels(torch.tensor([0, 2])))
    network.eval()
    size = network.config["img_resolution"]
    images = network(torch.randn(2, network.dim_z), network.embed_labels(torch.tensor([0, 2])))
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("name", ["biggan", "deep", "hf"])
@torch.no_grad()
def test_rows_of_weights_mix_classes(name: str) -> None:
    network = make(name)
    classes: Labels = torch.tensor([0, 2])
    rows = F.one_hot(classes, 3).float()
    torch.testing.assert_close(network.embed_labels(rows), network.embed_labels(classes))
    mixed = network.embed_labels(rows.mean(0, keepdim=True))
    torch.testing.assert_close(mixed, network.embed_labels(classes).mean(0, keepdim=True))


def test_tables_in_every_layer_mix_nothing() -> None:
    with pytest.raises(LabelError, match="cannot mix classes"):
        make("without shared").embed_labels(torch.ones(1, 3))


@pytest.mark.parametrize("cls", [BigGANDiscriminator, BigGANDeepDiscriminator])
@pytest.mark.parametrize("size", [32, 64])
def test_discriminator_tells_one_number(cls: Any, size: int) -> None:
    network = cls(img_resolution=size, num_classes=3, channels=8, img_channels=1)
    x = torch.randn(2, 1, size, size)
    same_image = network.eval()(x[:1].expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert same_image.shape == (2, 1)
    assert same_image[0] != same_image[1], "the class counts"


@pytest.mark.parametrize(
    ("cls", "num_official"), [(BigGANDiscriminator, 4), (BigGANDeepDiscriminator, 3)]
)
def test_attention_where_the_resolution_is(cls: Any, num_official: int) -> None:
    """At 32 pixels the official table calls every block's output 16x16."""

    def count(**options: bool) -> int:
        network = cls(**{**TINY, "channels": 8}, attn_resolutions=(16,), **options)
        return sum(isinstance(module, SelfAttention) for module in network.modules())

    assert count() == 1
    assert count(official_attention_table=True) == num_official


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (BigGANGenerator, {"img_resolution": 48}, "no architecture for 48x48.*32, 64, 128"),
        (BigGANGenerator, {"dim_z": 10}, "4 equal chunks.*use 8"),
        (BigGANGenerator, {"attn_resolutions": (24,)}, "resolution 24.*8, 16, 32"),
        (BigGANGenerator, {"shared_embedding": False}, "hierarchical"),
        (BigGANGenerator, {"num_classes": 0}, "num_classes must be made of whole numbers"),
        (BigGANGenerator, {"channels": 1, "attn_resolutions": (8,)}, "at least 8 features, not 4"),
        (BigGANDeepGenerator, {"depth": 0}, "depth"),
        (BigGANDiscriminator, {"attn_resolutions": (32,)}, "resolution 32.*8, 16"),
        (BigGANDiscriminator, {"img_resolution": 512}, "512x512"),
    ],
)
def test_refusals(cls: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**{**TINY, **options})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([(True, 16, 8), (True, 16, 8)], r"layers\[1\] goes from width 16"),
        ([(True, 16, 4)], r"layers\[0\]"),
        ([(True, 16, 8)], "end in width 8"),
    ],
)
def test_blocks_must_fit_together(layers: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BigGANDeepHF(**{**HF_TINY, "layers": layers})


@pytest.mark.parametrize("own", [False, True])
def test_running_statistics(own: bool) -> None:
    x = torch.randn(4, 2, 3, 3) * 2 + 1
    norm = BatchNorm(2, eps=1e-12, own=own)
    normalized = norm(x)
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(normalized.var((0, 2, 3), correction=0), torch.ones(2))
    var = x.var((0, 2, 3), correction=0 if own else 1)
    torch.testing.assert_close(norm.stored_mean, MOMENTUM * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.stored_var, 1 - MOMENTUM + MOMENTUM * var)
    expected: Tensor = (x - norm.stored_mean[:, None, None]) * norm.stored_var[
        :, None, None
    ].rsqrt()
    torch.testing.assert_close(norm.eval()(x), expected)


@torch.no_grad()
def test_half_precision_folds_statistics_in_float32() -> None:
    means = torch.linspace(10, 50, 64)
    x = (torch.randn(2, 64, 3, 3) + means[:, None, None]).bfloat16()
    stored, indexed = BatchNorm(64, eps=1e-4).eval(), IndexedBatchNorm(64, num_stats=2, eps=1e-4)
    stored.stored_mean.copy_(means)
    indexed.running_means.copy_(torch.stack([means - 1, means + 1]))
    expected = (x.float() - means[:, None, None]) * (1 + 1e-4) ** -0.5
    half = torch.bfloat16
    for out in (stored.to(half)(x), indexed.to(half)(x, torch.tensor([0.5, 0.5], dtype=half))):
        assert out.dtype == half
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-5)


def test_attention_begins_silent() -> None:
    network = make("biggan")
    [attention] = [m for m in network.modules() if isinstance(m, SelfAttention)]
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(attention(x), x)


def test_released_layout_makes_the_image_from_its_first_channels() -> None:
    with pytest.raises(ConfigError, match="channels must be at least 3"):
        BigGANDeepHF(**{**HF_TINY, "channels": 2})
