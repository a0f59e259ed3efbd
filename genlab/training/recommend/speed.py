"""How fast a machine trains a network, found out by a few steps of it."""

import time
from dataclasses import dataclass, replace

import torch

from genlab.data.pixels import from_uint8
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import DataMetadata, Share
from genlab.training.loop.loop import build_accelerator
from genlab.training.loop.models import Models
from genlab.training.loop.updates import MicroBatch, Updates
from genlab.training.objectives.base import build_objective

CPU_IMAGES = 16
"""Images of a measured step on a CPU, where a whole batch may take many seconds and larger ones are
no faster; a GPU is measured with the batch of the run."""

FEWEST_STEPS = 3
"""Measured steps at the least; the fastest counts, as what else the machine does will pass."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured.

    Attributes:
        images_per_second: of training, without reading images, previews or states.
        steps: that this rests on.
        seconds: that measuring took, the first step apart.
    """

    images_per_second: float
    steps: int
    seconds: float


def measure_speed(
    config: TrainConfig, data: DataMetadata, device: str | None = None, seconds: float = 2.0
) -> Speed:
    """Train fresh weights on noise for a few steps, in memory alone; the first is not counted.

    Args:
        config: of the run that is to be timed.
        data: of its images; none of them is read.
        device: where it would train; None is the best there is.
        seconds: that it may take; three steps are measured however long they take.

    Raises:
        ConfigError: a setting is wrong.
        RuntimeError: from torch, where memory does not suffice; see `is_out_of_memory`.
    """
    accelerator = build_accelerator(config, device)
    count = config.batch_size
    if accelerator.device.type == "cpu":
        count = min(count, CPU_IMAGES)
    config = replace(config, batch_size=count, gradient_accumulation=1)
    objective = build_objective(config.objective)
    objective.to(accelerator.device)
    with torch.random.fork_rng():  # models are drawn and trained from the global state
        models = Models(config, objective, data, accelerator)
        updates = Updates(config, objective, models, accelerator, Share(count, 1, 0, 1))
        batch = _noise(data, count, accelerator.device)
        if objective.num_initial_images:
            models.initialise(*batch)
        times = _time_steps(updates, batch, accelerator.device, seconds)
    return Speed(images_per_second=count / min(times), steps=len(times), seconds=sum(times))


def _noise(data: DataMetadata, count: int, device: torch.device) -> MicroBatch:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *data.image_shape), dtype=torch.uint8, generator=draws)
    labels = torch.arange(count) % data.num_classes if data.num_classes else -torch.ones(count)
    return from_uint8(pixels.to(device)), labels.long().to(device)


def _time_steps(
    updates: Updates, batch: MicroBatch, device: torch.device, seconds: float
) -> list[float]:
    """Seconds of each step but the first, which chooses kernels and fills caches."""
    times: list[float] = []
    updates.step(0, [batch])
    _wait(device)
    while len(times) < FEWEST_STEPS or sum(times) < seconds:
        started = time.perf_counter()
        updates.step(1 + len(times), [batch])
        _wait(device)
        times.append(time.perf_counter() - started)
    return times


def _wait(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
