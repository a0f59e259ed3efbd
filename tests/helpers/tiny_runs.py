"""Runs of seconds: a tiny network on a few real images."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genlab.config import load
from genlab.data.dataset import ImageDataset
from genlab.errors import TrainingError
from genlab.training.config import TrainConfig
from genlab.training.loop.loop import Outcome, Trainer
from genlab.training.loop.state import Progress, states

TINY = """
data: {image_size: 16, fit: resize}
network:
  name: song-unet
  model_channels: 8
  channel_mult: [1, 2]
  channel_mult_emb: 1
  num_blocks: 1
  attn_resolutions: [8]
  dropout: 0.1
objective: {name: diffusion, label_dropout: 0.2, augment: {p: 0.2}}
optimizer: {lr: 1e-3}
schedule: {warmup_kimg: 0.01}
output: {log_steps: 1, preview_kimg: null, snapshot_kimg: null, tensorboard: false}
batch_size: 4
duration_kimg: 0.024
"""
"""Six steps of four images."""


def write_slice(fashion_mnist: Path, folder: Path, count: int = 32) -> Path:
    """The first images of the training set as npz."""
    images, labels = ImageDataset(fashion_mnist).load_all()
    path = folder / "slice.npz"
    pixels = images[:count].permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=pixels, arr_1=labels[:count].numpy())
    return path


def write_config(folder: Path, data: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("data: {", f"data: {{path: {data}, "))
    return path


def tiny(config: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    return load(TrainConfig, str(config), "train", overrides)


def train(config: Path, folder: Path, *overrides: str) -> Outcome:
    return Trainer(tiny(config, overrides), folder, device="cpu").train()


def everything(folder: Path) -> dict[str, Any]:
    """All numbers of a run's last state, and the losses and learning rates of its log."""
    state = states(folder / "state")[-1]
    numbers: dict[str, Any] = {"step": state.name}
    for path in state.glob("*.safetensors"):
        numbers |= {f"{path.stem}/{key}": value for key, value in load_file(path).items()}
    optimizers = torch.load(state / "optimizers.pt", weights_only=True)["optimizers"]
    for name, optimizer in optimizers.items():
        for index, moments in optimizer["state"].items():
            numbers |= {f"{name}/{index}/{key}": value for key, value in moments.items()}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    numbers["log"] = [(line["step"], line["loss"], line["lr"]) for line in lines]
    return numbers


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
        assert same, f"{key} differs"


def stops_after(step: int) -> Callable[[Progress], None]:
    """Asks a run to stop; it notices in the step after."""

    def on_step(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def assert_goes_on_bit_for_bit(config: Path, folder: Path, settings: Sequence[str]) -> None:
    """A run that was told to stop ends where one does that was not."""
    whole = train(config, folder / "whole", *settings)
    trainer = Trainer(tiny(config, settings), folder / "parts", device="cpu")
    outcome = trainer.train(stops_after(2))
    assert (outcome.signal, outcome.progress.step) == (signal.SIGTERM, 3)
    outcome = train(config, folder / "parts", *settings)
    assert (outcome.signal, outcome.progress.step) == (None, whole.progress.step)
    assert_same(everything(folder / "whole"), everything(folder / "parts"))


def assert_refused(
    config: Path, folder: Path, settings: Sequence[str], error: type[Exception], named: str
) -> None:
    """Settings that cannot be trained with are named before anything is written."""
    with pytest.raises(error, match=named):
        Trainer(tiny(config, settings), folder / "run", device="cpu")
    assert not (folder / "run").exists()


def assert_keeps_its_micro_batches(config: Path, folder: Path) -> None:
    """A run whose layers look at the batch goes on with the micro-batches that it began with."""
    trainer = Trainer(tiny(config), folder, device="cpu")
    trainer.run.start(trainer.config, trainer.batches.metadata, "CPU")
    with pytest.raises(TrainingError, match="gradient_accumulation=1, now it is 2"):
        Trainer(tiny(config, ["gradient_accumulation=2"]), folder, device="cpu")
