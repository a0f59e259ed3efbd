"""Transformers and flow matching in the one loop, and the recipes of the bundled transformers."""

from pathlib import Path

import pytest
import torch
from tiny_runs import train, write_slice

import genlab
from genlab.config import load
from genlab.diffusion.flow import Flow
from genlab.generators import DiffusionGenerator
from genlab.networks import DiT
from genlab.training.config import TrainConfig
from genlab.training.export import Choice, export
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import build_network, build_objective
from genlab.training.run import Run

TINY = """
data: {path: DATA, image_size: 16, fit: resize}
network: {name: dit, patch_size: 4, hidden_size: 32, depth: 2, num_heads: 2, num_streams: 2}
objective:
  name: diffusion
  preconditioning: {name: flow, path: gvp}
  loss: {name: flow, path: gvp}
  label_dropout: 0.2
  augment: {p: 0.2}
output: {log_steps: 1, preview_kimg: null, snapshot_kimg: null, tensorboard: false}
sampler:
  solver: {name: flow, path: gvp}
  schedule: {name: flow, path: gvp, num_steps: 4}
  guidance: [{name: cfg, scale: 1.5}]
gradient_checkpointing: true
batch_size: 4
duration_kimg: 0.024
"""


def test_a_flow_of_a_transformer_is_trained_and_drawn_from(
    fashion_mnist: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.replace("DATA", str(write_slice(fashion_mnist, tmp_path))))
    outcome = train(config, tmp_path / "run")
    assert 0.1 < outcome.loss < 10  # a velocity of images and noise has a mean square near 2
    export(Run(tmp_path / "run"), tmp_path / "model", Choice())
    generator = genlab.load(str(tmp_path / "model"))
    assert isinstance(generator, DiffusionGenerator)
    assert isinstance(generator.network, DiT)
    assert generator.preconditioning == Flow(path="gvp")
    [batch] = generator.stream([0, 1], [3, 7])
    assert batch.images.isfinite().all()
    assert batch.nfe == 2 * (2 * 4 - 1)  # Heun's method, and both halves of the guidance


@pytest.mark.parametrize(("preset", "millions"), [("dit-fmnist", 4.2), ("dit-fmnist-s", 1.1)])
def test_recipes_fit_the_images(preset: str, millions: float) -> None:
    config = load(TrainConfig, preset, "train", ["data.path=somewhere"])
    data = DataMetadata(num_images=1, image_shape=(1, 32, 32), num_classes=10, class_names=None)
    objective = build_objective(config.objective)
    with torch.device("meta"):
        network = objective.build(config.network, data)["network"]
    assert isinstance(network, DiT)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_published_sizes_have_names() -> None:
    metadata = {"img_resolution": 32, "in_channels": 4, "out_channels": 8, "label_dim": 1000}
    with torch.device("meta"):
        network = build_network({"name": "dit-s2"}, metadata)
        smaller = build_network({"name": "dit-xl2", "depth": 2}, metadata)
    assert isinstance(network, DiT)
    assert (network.hidden_size, len(network.blocks)) == (384, 12)
    assert isinstance(smaller, DiT)
    assert (smaller.hidden_size, len(smaller.blocks)) == (1152, 2)
