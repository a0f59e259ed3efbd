"""diffusers' networks in our contract: labels, null class, saving, gradient checkpointing."""

from pathlib import Path
from typing import Any

import pytest
import torch

import genlab
from genlab import DiffusionGenerator, GenLabPipeline
from genlab.diffusion.discrete import Discrete
from genlab.errors import ConfigError, LabelError
from genlab.networks.diffusers_dit import DiffusersDiT
from genlab.networks.diffusers_unet import DiffusersUNet
from genlab.networks.layers.noise_embeddings import time_features

UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def make(kind: str) -> Any:
    torch.manual_seed(3)
    network: Any = (
        DiffusersUNet(8, 1, 1, label_dim=3, options=UNET)
        if kind == "unet"
        else DiffusersDiT(8, 1, 1, label_dim=3, hidden_size=16, depth=2, num_heads=2)
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_labels(kind: str) -> None:
    network = make(kind)
    hard = network.embed_labels(torch.tensor([2, -1]))
    soft = network.embed_labels(torch.tensor([[0.0, 0, 1], [0, 0, 0]]))
    assert torch.equal(hard, soft)
    assert torch.equal(network.embed_labels(None)[0], hard[1])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([10.0])
    with torch.no_grad():
        together = network(x, t, hard)
        alone = network(x[:1], t, hard[:1])
        null = network(x, t)
    torch.testing.assert_close(together[:1], alone)
    torch.testing.assert_close(null[1], together[1])
    assert not torch.allclose(null[0], together[0])
    with pytest.raises(LabelError, match="must lie in 0"):
        network.embed_labels(torch.tensor([3]))


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    network = make(kind)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 700.0])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        network(x, t, network.embed_labels(torch.tensor([0, 1]))).square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_saved_as_a_generator(kind: str, tmp_path: Path) -> None:
    few = {"schedule": {"name": "timesteps", "num_steps": 2}}
    generator = DiffusionGenerator(make(kind), Discrete(), sampler=few)
    images = generator.sample([0, 1], [0, 1])
    generator.save_pretrained(tmp_path)
    assert torch.equal(genlab.load(tmp_path).sample([0, 1], [0, 1]), images)
    # Any argument beyond the type takes diffusers' own code.
    pipe: Any = GenLabPipeline.from_pretrained(tmp_path, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(s) for s in (0, 1)]
    drawn = pipe([0, 1], generator=seeds, output_type="pt").images
    torch.testing.assert_close(drawn, images / 2 + 0.5)


def test_half_precision() -> None:
    for kind in ("unet", "dit"):
        network = make(kind).to(torch.bfloat16)
        x = torch.randn(1, 1, 8, 8, dtype=torch.bfloat16)
        assert network(x, torch.tensor([999.0])).dtype == torch.bfloat16


def test_time_features_reach_their_last_frequency() -> None:
    features = time_features(torch.tensor([10000.0]), 8, endpoint=True)
    assert features[0, 3] == pytest.approx(torch.tensor(1.0).cos().item(), abs=1e-4)


def test_what_it_cannot_build_is_refused() -> None:
    with pytest.raises(ConfigError, match="time_embedding_type 'fourier'"):
        DiffusersUNet(8, options={**UNET, "time_embedding_type": "fourier"})
    with pytest.raises(ConfigError, match="UNet2DModel cannot be built"):
        DiffusersUNet(8, options={**UNET, "no_such_argument": 1})
    with pytest.raises(ConfigError, match="label_dim"):
        DiffusersDiT(8, 1, 1, label_dim=0)
    with pytest.raises(ConfigError, match="img_resolution 8 cannot be cut into patches of 3"):
        DiffusersDiT(8, 1, 1, label_dim=2, patch_size=3)
