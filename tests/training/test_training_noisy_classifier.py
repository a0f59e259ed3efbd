"""A classifier of noisy images in the one training loop, and ADM beside it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import train, write_slice

import genlab
from genlab.checkpoints.classifiers import load_classifier
from genlab.errors import CheckpointError, UnknownNameError
from genlab.training.export import Choice, export
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import build_objective
from genlab.training.objectives.noisy_classification import LEVELS, NoisyClassifierObjective
from genlab.training.run import Run

TINY = """
data: {path: PATH, image_size: 8, fit: resize}
network:
  name: adm-classifier
  model_channels: 32
  channel_mult: [1, 1]
  num_blocks: 1
  attn_resolutions: []
  num_head_channels: 16
objective: {name: noisy-classifier, flip: false}
validation: {path: OTHER}
optimizer: {lr: 2e-3}
schedule: {warmup_kimg: 0.01}
ema: {halflife_kimg: 0}
output: {log_steps: 10, snapshot_kimg: 0.64, tensorboard: false}
batch_size: 32
duration_kimg: 1.28
"""


@pytest.fixture(scope="module")
def config(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noisy")
    other = folder / "other"
    other.mkdir()
    path = folder / "tiny.yaml"
    data = write_slice(fashion_mnist, folder, count=64)
    path.write_text(
        TINY.replace("PATH", str(data)).replace("OTHER", str(write_slice(fashion_mnist, other)))
    )
    return path


def test_it_learns_what_little_noise_leaves(config: Path, tmp_path: Path) -> None:
    """64 images learnt by heart, of which 32 are asked about: the more noise, the harder."""
    train(config, tmp_path / "run", "class_names=[a,b,c,d,e,f,g,h,i,j]")
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(10), abs=0.4)
    last = {level: lines[-1][f"accuracy_at_{level:g}"] for level in LEVELS}
    assert last[0.1] > 0.3  # guessing gives 0.1, with a standard error of 0.05
    assert last[10.0] < last[0.1]
    export(Run(tmp_path / "run"), tmp_path / "out", Choice())

    classifier = load_classifier(tmp_path / "out")
    assert classifier.class_names == tuple("abcdefghij")
    assert classifier.preconditioning.name == "edm"
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        torch.testing.assert_close(classifier(x, sigma)[:1], classifier(x[:1], sigma[0]))
    card = (tmp_path / "out/README.md").read_text()
    for text in (
        "tags: [image-classification, noisy-classifier]",
        "Accuracy at 0.1",
        "genlab sample",
    ):
        assert text.lower() in card.lower()
    with pytest.raises(CheckpointError, match="classifier of noisy images, which draws nothing"):
        genlab.load(tmp_path / "out")
    with pytest.raises(UnknownNameError, match="no classifier 'nowhere'"):
        load_classifier("nowhere")


def test_noise_levels_are_those_of_samplers() -> None:
    u = torch.linspace(0, 0.999, 200)
    sigma = NoisyClassifierObjective().sigma(u)
    assert float(sigma[0]) == pytest.approx(80)
    assert float(sigma[-1]) == pytest.approx(0.002, rel=0.05)
    steps = (sigma ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(199), rtol=1e-2, atol=0)
    discrete = NoisyClassifierObjective(preconditioning={"name": "discrete", "T": 200})
    model: Any = discrete._preconditioning
    assert torch.equal(discrete.sigma(torch.arange(200) / 200 + 0.001), model.levels.float())


@pytest.mark.parametrize("variance", ["learned_range", "fixed_small"])
def test_adm_trains_with_the_loss_of_its_paper(variance: str) -> None:
    objective = build_objective(
        {
            "name": "diffusion",
            "preconditioning": {"name": "discrete", "T": 100, "variance": variance},
            "loss": {"name": "ddpm", "kind": "rescaled_mse"},
            "label_dropout": 0.1,
        }
    )
    network = {
        "name": "adm-unet",
        "model_channels": 32,
        "channel_mult": [1],
        "num_blocks": 1,
        "attn_resolutions": [],
        "num_head_channels": 32,
    }
    data = DataMetadata(num_images=9, image_shape=(1, 8, 8), num_classes=10, class_names=None)
    networks = objective.build(network, data)
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    labels = torch.tensor([0, 3, 9, 1])
    loss = objective.compute_loss(
        "network", networks, images, labels, torch.Generator().manual_seed(0)
    )
    loss.total.backward()
    learned = variance == "learned_range"
    assert set(loss.parts) == ({"vb", "mse"} if learned else {"mse"})
    assert float(loss.parts["mse"]) == pytest.approx(1, abs=0.3)  # it says 0 of unit noise
    channels: Any = networks["network"].config
    assert channels.out_channels == (2 if learned else 1)
