"""Fine-tuning runs of seconds: a bundled transformer on a few real images."""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from genlab.config import load, preset_names
from genlab.data.dataset import ImageDataset
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.training.loop.state import states

BASE = "dit-fmnist-s"

SETTINGS = (
    "data.fit=pad",
    "batch_size=4",
    "duration_kimg=0.024",
    "schedule.warmup_kimg=0.01",
    "output.log_steps=1",
    "output.tensorboard=false",
    "output.snapshot_kimg=null",
    "output.preview_kimg=null",
    "output.preview_count=2",
    "sampler.schedule.num_steps=2",
)
"""Six steps of four images."""


def write_fmnist(fashion_mnist: Path, folder: Path, count: int = 32) -> Path:
    """The first training images of Fashion-MNIST as npz, without names of classes."""
    images, labels = ImageDataset(fashion_mnist).load_all()
    path = folder / "fmnist.npz"
    pixels = images[:count].permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=pixels, arr_1=labels[:count].numpy())
    return path


def write_photographs(cifar_zip: Path, folder: Path, count: int = 20) -> Path:
    """A folder with three folders of RGB images, not all of one size, and none square."""
    with zipfile.ZipFile(cifar_zip) as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
        for number, name in enumerate(("cat", "ship", "frog")):
            target = folder / "photographs" / name
            target.mkdir(parents=True)
            members = [member for member, label in labels if label == number][:count]
            for index, member in enumerate(members):
                picture = Image.open(io.BytesIO(archive.read(member))).convert("RGB")
                picture.resize((48 + 8 * (index % 2), 40)).save(target / f"{index}.png")
    return folder / "photographs"


def finetune_config(data: Path, method: str, overrides: Sequence[str] = ()) -> FinetuneConfig:
    preset = method if method in preset_names("finetune") else None
    settings = [f"base={BASE}", f"data.path={data}", f"method.name={method}", *SETTINGS, *overrides]
    return load(FinetuneConfig, preset, "finetune", settings)


def trainer_of(data: Path, folder: Path, method: str, *overrides: str) -> FinetuneTrainer:
    return FinetuneTrainer(finetune_config(data, method, overrides), folder, device="cpu")


def last_state(folder: Path) -> Path:
    return states(folder / "state")[-1]


def everything_of(folder: Path) -> dict[str, Any]:
    """All numbers of a run's last state and of its adapter, and the losses of its log."""
    state = last_state(folder)
    numbers: dict[str, Any] = {"step": state.name}
    for path in (*state.glob("*.safetensors"), folder / "adapter_model.safetensors"):
        numbers |= {f"{path.stem}/{key}": value for key, value in load_file(path).items()}
    optimizers = torch.load(state / "optimizers.pt", weights_only=True)["optimizers"]
    for index, moments in optimizers["network"]["state"].items():
        numbers |= {f"{index}/{key}": value for key, value in moments.items()}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    numbers["log"] = [(line["step"], line["loss"], line["lr"]) for line in lines]
    return numbers


def environment() -> dict[str, str]:
    """Of a process that runs beside others."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
