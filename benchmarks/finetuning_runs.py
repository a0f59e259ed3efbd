"""One fine-tuning run of a comparison: train, score at given steps, tell what it cost.

``finetuning.py`` runs this in a fresh process for each run, so that a run's memory is its own.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genlab.config import load
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import to_uint8
from genlab.data.writing.writers import encode_png, write_zip
from genlab.eval.in_training import SampleScores
from genlab.files import atomic_path
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.training.config import DataConfig
from genlab.training.loop.evaluation import Subject
from genlab.training.loop.state import Progress
from genlab.training.machine import peak_memory_mib

TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")
LOSS = "heldout_loss"
SHOWN = 12
"""Images of each run that a picture shows."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one run is to do; plain values, since it travels to another process.

    Attributes:
        base: the model to begin from.
        folder: holds ``train.zip``, ``validation.zip`` and ``test.zip``.
        class_names: of the data.
        name: of the method in tables.
        method: its name and options.
        lr: learning rate.
        seed: of the run.
        steps: after which the run is scored; it ends with the last. Empty draws no images: the run
            ends after ``search_steps`` with the loss on the validation images.
        search_steps: see ``steps``.
        batch_size: images a step.
        mixed_precision: of the run.
        warmup_steps: over which the learning rate grows.
        extractor: that looks at the images.
        sampler: how they are drawn.
        threads: of torch.
    """

    base: str
    folder: str
    class_names: Sequence[str]
    name: str
    method: Mapping[str, Any]
    lr: float
    seed: int
    steps: Sequence[int]
    search_steps: int
    batch_size: int
    mixed_precision: str
    warmup_steps: int
    extractor: str
    sampler: Mapping[str, Any]
    threads: int


@dataclass(kw_only=True)
class Scorer(SampleScores):
    """Scores samples and keeps some for a picture.

    Attributes:
        pictures: step -> some images, (H, W, C) each.
    """

    pictures: dict[int, list[np.ndarray[Any, Any]]] = field(default_factory=dict)

    def features_of(self, data: DataConfig) -> Tensor:
        """Features of real images, which all runs of a comparison share."""
        path = Path(f"{data.path}.{self.extractor}.safetensors")
        if not path.is_file():
            with atomic_path(path) as temporary:
                save_file({"features": super().features_of(data)}, temporary)
        return load_file(path)["features"]

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        """See `genlab.training.loop.evaluation.Evaluation`."""
        pixels = to_uint8(self.draw(subject))
        shown = torch.linspace(0, len(pixels) - 1, SHOWN).long()
        self.pictures[subject.progress.step] = list(pixels[shown].permute(0, 2, 3, 1).numpy())
        return self.compare(pixels)


def scorer_of(task: Task) -> Scorer:
    """Compares with the test images, after the steps that a task names."""
    test, train = (DataConfig(path=f"{Path(task.folder) / part}.zip") for part in (TEST, TRAIN))
    return Scorer(
        extractor=task.extractor,
        reference=test,
        training=train,
        kimg=min(task.steps) * task.batch_size / 1000,
        sampler=dict(task.sampler),
    )


def split(source: ImageDataset, folder: Path, shares: tuple[float, float], most: int) -> None:
    """Write the parts of a data set, with the same share of every class in each.

    Args:
        source: all images.
        folder: gets a zip for each of `PARTS`.
        shares: of validation and test images; at least one of each class.
        most: images in all, evenly over the classes where that cuts some off.
    """
    images, labels = source.load_all()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    members: dict[str, list[int]] = {part: [] for part in PARTS}
    per_class = max(3, most // source.num_classes)
    for label in range(source.num_classes):
        own = order[labels[order] == label].tolist()[:per_class]
        validation, test = (max(1, round(share * len(own))) for share in shares)
        members[VALIDATION] += own[:validation]
        members[TEST] += own[validation : validation + test]
        members[TRAIN] += own[validation + test :]
    for part, numbers in members.items():
        pixels = ((f"{n:06}.png", encode_png(images[n].permute(1, 2, 0).numpy())) for n in numbers)
        write_zip(folder / f"{part}.zip", pixels, labels[numbers].tolist())


def settings(task: Task) -> list[str]:
    """The settings of a run, over the preset of its method."""
    folder, method = Path(task.folder), dict(task.method)
    steps = max(task.steps) if task.steps else task.search_steps
    options = [f"method.{key}={value}" for key, value in method.items() if key != "name"]
    return [
        f"base={task.base}",
        f"method.name={method['name']}",
        *options,
        f"data.path={folder / TRAIN}.zip",
        f"validation.path={folder / VALIDATION}.zip",
        f"class_names={list(task.class_names)}",
        f"optimizer.lr={task.lr}",
        f"schedule.warmup_kimg={task.warmup_steps * task.batch_size / 1000}",
        f"batch_size={task.batch_size}",
        f"duration_kimg={steps * task.batch_size / 1000}",
        f"mixed_precision={task.mixed_precision}",
        f"seed={task.seed}",
        "copying.check=false",
        "output.preview_kimg=null",
        "output.snapshot_kimg=null",
        "output.tensorboard=false",
        "output.state_minutes=1000",
    ]


def run(task: Task) -> dict[str, Any]:
    """Train and score.

    Returns:
        What was measured; ``pictures`` are PNG files in bytes.
    """
    torch.set_num_threads(task.threads)
    config = load(FinetuneConfig, task.method["name"], "finetune", settings(task))
    scorers = [scorer_of(task)] if task.steps else []
    lines: list[dict[str, Any]] = []
    clock, memory = [], [0.0]
    first = min(task.steps or [task.search_steps])

    def note(progress: Progress) -> None:
        clock.append(time.process_time())
        if progress.step < first:
            memory[0] = peak_memory_mib()  # before any image is drawn

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = peak_memory_mib()
        trainer = FinetuneTrainer(config, folder, watch=lines.append, evaluations=scorers)
        clock.append(time.process_time())
        trainer.train(note)
        stored = (folder / "adapter_model.safetensors").stat().st_size
        network = trainer.models.unwrapped[trainer.objective.main]
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    seconds = [end - start for start, end in pairwise(clock[1:])]
    return {
        "method": task.name,
        "lr": task.lr,
        "seed": task.seed,
        "seconds_per_step": statistics.median(seconds),
        "peak_memory_mib": memory[0],
        "memory_before_mib": before,
        "stored_bytes": stored,
        "trainable_parameters": trained,
        LOSS: lines[-1][LOSS],
        "scores": {
            line["step"]: {name: line[name] for name in scorers[0].scores}
            for line in lines
            if scorers and scorers[0].name_of("fd") in line
        },
        "pictures": {
            step: [encode_png(pixels) for pixels in images]
            for step, images in (scorers[0].pictures.items() if scorers else ())
        },
    }
