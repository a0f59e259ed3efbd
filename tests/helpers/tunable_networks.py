"""Tiny networks that can be fine-tuned, each called in one way, and real images for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.data.sources.idx import read_idx
from genlab.finetuning.layouts import LAYOUTS
from genlab.networks import DhariwalUNet, DiT, SongUNet
from genlab.networks.adm_unet import ADMUNet
from genlab.networks.base import Network
from genlab.networks.diffusers_dit import DiffusersDiT
from genlab.networks.diffusers_unet import DiffusersUNet
from genlab.networks.layout import Branch, ClassTable, Layout, build_layout
from genlab.registry import class_path

CLASSES = 10
TRANSFORMER: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 1,
    "out_channels": 1,
    "label_dim": CLASSES,
    "hidden_size": 16,
    "depth": 3,
    "num_heads": 2,
}
UNET: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 1,
    "out_channels": 1,
    "label_dim": CLASSES,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
DIFFUSERS_UNET: dict[str, Any] = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


class OwnNetwork(nn.Module):
    """Somebody else's network: GenLab knows nothing of it but what is registered below."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(1, 8, 3, padding=1)
        self.classes = nn.Embedding(CLASSES, 8)
        self.norms = nn.ModuleList(nn.GroupNorm(2, 8) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.outlet = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        h = self.inlet(x) + (self.classes(labels) + level[:, None].to(x))[:, :, None, None]
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = h + convolution(F.silu(norm(h)))
        return self.outlet(h)


@LAYOUTS.register(class_path(OwnNetwork))
def own_layout(network: nn.Module) -> Layout:
    layers = [f"convolutions.{index}" for index in range(3)]
    return build_layout(
        network,
        blocks=layers,
        branches=[
            Branch(block=layer, kind="convolution", layer=layer, width=8) for layer in layers
        ],
        tables=[ClassTable(layer="classes")],
        modules={"last": ["outlet"], "convolution": layers},
    )


def _theirs() -> Any:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=3, sample_size=8,
        num_embeds_ada_norm=CLASSES,
    )  # fmt: skip


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "dit": lambda: DiT(**TRANSFORMER),
    "dit-streams": lambda: DiT(**TRANSFORMER, num_streams=2),
    "diffusers-dit": lambda: DiffusersDiT(**TRANSFORMER),
    "theirs": _theirs,
    "own": OwnNetwork,
    "ddpmpp": lambda: SongUNet(**UNET),
    "ncsnpp": lambda: SongUNet(
        **UNET, encoder_type="residual", embedding_type="fourier", resample_filter=[1, 3, 3, 1],
        channel_mult_noise=2,
    ),
    "edm-adm": lambda: DhariwalUNet(**{**UNET, "model_channels": 32}),
    "adm": lambda: ADMUNet(**{**UNET, "model_channels": 32}, num_head_channels=16),
    "diffusers-unet": lambda: DiffusersUNet(8, 1, 1, label_dim=CLASSES, options=DIFFUSERS_UNET),
}  # fmt: skip
TRANSFORMERS = ["dit", "dit-streams", "diffusers-dit", "theirs"]
"""Networks of blocks with adaLN-Zero, whose normalisations have no parameters."""


def build(name: str, **changes: Any) -> nn.Module:
    """A network in eval mode whose every weight matters: fresh ones have silent layers.

    Networks that do not tell their parts skip the test.
    """
    torch.manual_seed(7)
    network = DiT(**{**TRANSFORMER, **changes}) if changes else BUILDERS[name]()
    if isinstance(network, Network) and type(network).layout is Network.layout:
        pytest.skip(f"{type(network).__name__} does not tell its parts")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def call(network: Any, x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
    """Evaluate any of the networks."""
    if type(network).__name__ == "DiTTransformer2DModel":
        out: Tensor = network(x, timestep=level, class_labels=labels).sample
        return out
    if isinstance(network, OwnNetwork):
        return network(x, level, labels)
    return network(x, level, network.embed_labels(labels))


@dataclass(frozen=True)
class Pictures:
    """Some of Fashion-MNIST at 8x8, with noise added.

    Attributes:
        images: (B, 1, 8, 8) in [-1, 1].
        labels: (B,).
        noise: as the images.
        level: what the network is told of the noise, (B,).
    """

    images: Tensor
    labels: Tensor
    noise: Tensor
    level: Tensor

    @classmethod
    def read(cls, folder: Path, count: int = 16) -> "Pictures":
        """The first ``count`` of the test set."""
        pixels = torch.from_numpy(read_idx(folder / "t10k-images-idx3-ubyte.gz")[:count].copy())
        labels = torch.from_numpy(read_idx(folder / "t10k-labels-idx1-ubyte.gz")[:count].copy())
        padded = F.pad(pixels[:, None].float() / 127.5 - 1, (2, 2, 2, 2), value=-1)
        torch.manual_seed(5)
        images = F.avg_pool2d(padded, 4)
        return cls(images, labels.long(), torch.randn_like(images), torch.linspace(0.1, 0.9, count))

    def predict(self, network: nn.Module) -> Tensor:
        """What a network makes of the noisy images."""
        dtype = next(network.parameters()).dtype
        x = (self.images + self.level[:, None, None, None] * self.noise).to(dtype)
        return call(network, x, self.level, self.labels)

    def train(self, network: nn.Module, names: list[str], steps: int = 4) -> None:
        """A few large steps of Adam on the noise, so that what trains is far from its start."""
        parameters = dict(network.named_parameters())
        optimizer = torch.optim.Adam([parameters[name] for name in names], lr=0.03)
        for _ in range(steps):
            optimizer.zero_grad()
            (self.predict(network) - self.noise).square().mean().backward()
            optimizer.step()
        optimizer.zero_grad()
