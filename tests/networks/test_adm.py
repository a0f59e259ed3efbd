"""ADM's U-Net and noisy classifier: shapes, options, initial state, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.errors import ConfigError, LabelError
from genlab.networks.adm_unet import ADMUNet
from genlab.networks.layers.adm_blocks import attend
from genlab.networks.noisy_classifier import POOLS, ADMClassifier

TINY: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "num_head_channels": 16,
}


def unet(**changes: Any) -> ADMUNet:
    torch.manual_seed(0)
    network = ADMUNet(**{**TINY, "out_channels": 6, "label_dim": 5, **changes})
    return network.eval()


def classifier(**changes: Any) -> ADMClassifier:
    torch.manual_seed(0)
    return ADMClassifier(**{**TINY, "num_classes": 5, **changes}).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resblock_updown": False},
        {"resblock_updown": False, "conv_resample": False},
        {"scale_shift": False, "new_attention_order": True},
        {"num_head_channels": None, "num_heads": 2, "num_heads_upsample": 4},
        {"channel_mult": [0.5, 1], "model_channels": 64, "label_dim": 0},
    ],
    ids=str,
)
@torch.no_grad()
def test_fresh_network_is_silent_and_any_size_fits(changes: dict[str, Any]) -> None:
    network = unet(**changes)
    labels = torch.tensor([2, -1]) if network.label_dim else None
    x = torch.randn(2, 3, 12, 8)
    out = network(x, torch.tensor([0.0, 999.0]), network.embed_labels(labels))
    assert out.shape == (2, 6, 12, 8)
    assert float(out.abs().max()) == 0  # the last convolution starts at 0


@torch.no_grad()
def test_no_class_adds_nothing() -> None:
    network = unet()
    rows = network.embed_labels(torch.tensor([3, -1]))
    assert rows is not None
    assert torch.equal(rows, torch.stack([network.label_emb.weight[3], torch.zeros(128)]))
    with pytest.raises(LabelError, match=r"0 \.\.\. 4"):
        network.embed_labels(torch.tensor([5]))


@torch.no_grad()
def test_super_resolution_needs_the_small_images() -> None:
    network = unet(super_resolution=True)
    x, t = torch.randn(1, 3, 8, 8), torch.zeros(1)
    assert network(x, t, low_res=torch.randn(1, 3, 4, 4)).shape == (1, 6, 8, 8)
    with pytest.raises(ConfigError, match="give the smaller ones as low_res"):
        network(x, t)
    with pytest.raises(ConfigError, match="takes no low_res"):
        unet()(x, t, low_res=x)


@torch.no_grad()
def test_attention_orders_are_permutations_of_each_other() -> None:
    """(head, q/k/v, channel) against (q/k/v, head, channel), and a plain softmax."""
    heads, width, n = 3, 4, 7
    legacy = torch.randn(2, heads, 3, width, n)
    new = legacy.transpose(1, 2)
    ours = attend(legacy.reshape(2, -1, n), heads, new_order=False)
    assert torch.equal(ours, attend(new.reshape(2, -1, n), heads, new_order=True))
    q, k, v = legacy.unbind(2)
    weights = (torch.einsum("bhcn,bhcm->bhnm", q, k) / width**0.5).softmax(-1)
    expected = torch.einsum("bhnm,bhcm->bhcn", weights, v).reshape(2, -1, n)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("pool", POOLS)
def test_classifier_reads_image_and_noise_level(pool: str) -> None:
    network = classifier(pool=pool)
    for parameter in network.parameters():  # layers that begin at 0 would hide what is before them
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    logits = network(x, torch.tensor([10.0, 500.0]))
    assert logits.shape == (2, 5)
    [gradient] = torch.autograd.grad(logits[0, 1], x)
    assert float(gradient[0].abs().min()) > 0
    assert float(gradient[1].abs().max()) == 0  # samples do not meet
    assert not torch.equal(logits, network(x, torch.tensor([500.0, 10.0])))


@pytest.mark.parametrize("make", [unet, classifier])
def test_network_comes_back(make: Any, tmp_path: Path) -> None:
    network = make()
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path)
    state: dict[str, Tensor] = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 40}, "multiples of 32"),
        ({"num_head_channels": 48}, "cannot be split evenly"),
        ({"channel_mult": [1, 0]}, "above 0"),
        ({"img_resolution": 9}, "cannot be halved"),
        ({"num_blocks": 0}, "num_blocks"),
    ],
)
@pytest.mark.parametrize("make", [unet, classifier])
def test_impossible_settings_are_refused(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_heads_of_the_decoder_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="no effect with num_head_channels"):
        unet(num_heads_upsample=4)


@torch.no_grad()
def test_patches_are_folded_into_channels() -> None:
    network = classifier(img_resolution=16, patch_size=2)
    assert network.state_dict()["input_blocks.0.0.weight"].shape == (32, 12, 3, 3)
    assert network(torch.randn(2, 3, 16, 16), torch.zeros(2)).shape == (2, 5)
    with pytest.raises(ConfigError, match="cannot be cut into patches of 3"):
        classifier(patch_size=3)


def test_unknown_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="pool must be one of attention, adaptive"):
        classifier(pool="mean")
