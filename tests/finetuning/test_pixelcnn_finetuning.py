"""PixelCNNs tuned to a class that they do not know: what trains, and that images get cheaper."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import genlab
from genlab.config import load
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.run import FinetuneRun
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.generators.autoregressive import AutoregressiveGenerator
from genlab.networks.gated_pixelcnn import GatedPixelCNN
from genlab.training.export import Choice, make_product

SETTINGS = (
    "batch_size=8",
    "duration_kimg=0.064",
    "schedule.warmup_kimg=0",
    "ema.rampup_ratio=null",
    "ema.halflife_kimg=0.001",
    "output.log_steps=1",
    "output.tensorboard=false",
    "output.snapshot_kimg=null",
    "output.preview_kimg=null",
)
"""Eight steps of eight images; the averages follow closely."""


@pytest.fixture(scope="module")
def turned(fashion_mnist: Path) -> Tensor:
    """Real bags upside down and in negative: no class of Fashion-MNIST."""
    images, labels = ImageDataset(fashion_mnist).load_all()
    return 255 - images[labels == 8][:24].flip(2)


def write(images: Tensor, path: Path) -> Path:
    labels = np.zeros(len(images), np.int64)
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels)
    return path


def train(base: str, method: str, images: Tensor, folder: Path, *told: str) -> tuple[float, float]:
    """Bits/dim of images that are not trained on, before and after."""
    data = write(images[8:], folder / "data.npz")
    settings = [f"base={base}", f"data.path={data}", "class_names=[turned]", *SETTINGS, *told]
    config = load(FinetuneConfig, method, "finetune", settings)
    trainer = FinetuneTrainer(config, folder / "run", device="cpu")
    held_out = [(from_uint8(images[:8]), torch.zeros(8, dtype=torch.int64))]

    def bits() -> float:
        network = trainer.models.main.eval()
        value = trainer.objective.evaluate(network, held_out)["bpd"]
        network.train()
        return value

    before = bits()
    frozen = {
        n: p.clone() for n, p in trainer.models.main.named_parameters() if not p.requires_grad
    }
    trainer.train()
    after = trainer.models.main.named_parameters()
    assert all(torch.equal(p, frozen[n]) for n, p in after if n in frozen)
    return before, bits()


@pytest.mark.parametrize(
    ("method", "rate"), [("class-table", 3e-2), ("bitfit", 3e-3), ("full", 1e-3)]
)
def test_images_of_a_new_class_get_cheaper(
    method: str, rate: float, turned: Tensor, tmp_path: Path
) -> None:
    before, after = train("pixelcnnpp-fmnist", method, turned, tmp_path, f"optimizer.lr={rate}")
    assert after < before - 0.2


@pytest.mark.parametrize("method", ["class-table", "bitfit", "last", "full"])
def test_a_gated_pixelcnn_is_tuned_alike(method: str, turned: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = GatedPixelCNN(28, 1, label_dim=3, channels=8, num_layers=2, head_channels=8)
    AutoregressiveGenerator(network.eval(), has_null_class=True).save_pretrained(tmp_path / "base")
    before, after = train(str(tmp_path / "base"), method, turned, tmp_path, "optimizer.lr=1e-2")
    assert after < before
    exported: Any = make_product(FinetuneRun(tmp_path / "run"), Choice())[0]
    adapted = genlab.load(tmp_path / "run")
    assert adapted.class_names == ("turned",)
    bits = [each.bits_per_dimension(from_uint8(turned[:2]), [0, 0]) for each in (adapted, exported)]
    assert torch.equal(*bits)


def test_bitfit_trains_every_bias_of_weight_normalised_layers() -> None:
    """Among them those of layers that no `nn.Linear` or `nn.Conv2d` is."""
    network: Any = genlab.load("pixelcnnpp-fmnist").network
    biases = {name for name, _ in network.named_parameters() if name.endswith(".bias")}
    groups = network.layout().groups
    assert set(groups["bias"]) == biases
    assert set(groups["class"]) == {
        name for name, _ in network.named_parameters() if name.endswith("class_embedding.weight")
    }
