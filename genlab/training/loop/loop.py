"""The training loop, one for all families."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from genlab.data.pixels import from_uint8
from genlab.data.sources.latents import AUTOENCODER, LatentDataset, draw_latents, keep_autoencoder
from genlab.errors import ConfigError
from genlab.generators.base import Generator
from genlab.runs.lock import lock_folder
from genlab.runs.processes import launched
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import Batches, Micro, Share
from genlab.training.loop.early_stopping import EarlyStop
from genlab.training.loop.evaluation import Evaluation, Inspection
from genlab.training.loop.logs import tracker_names
from genlab.training.loop.models import Models
from genlab.training.loop.recorder import Recorder
from genlab.training.loop.seeds import generator
from genlab.training.loop.state import Progress, load_state, read_progress, states
from genlab.training.loop.stop import StopRequest
from genlab.training.loop.updates import MicroBatch, Updates
from genlab.training.loop.validation import build_validation
from genlab.training.machine import hardware
from genlab.training.objectives.base import Objective, build_objective
from genlab.training.objectives.latents import with_autoencoder
from genlab.training.run import Run

SIGNAL_STEPS = 8
"""How often processes ask each other for a wish to stop; asking costs a round trip."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `Trainer.train` ended.

    Attributes:
        progress: where the run stands.
        loss: mean over the steps of the last log line; nan if there was none.
        signal: what stopped the run before its end, or None.
        early_stop: why it ended before its length, or None.
    """

    progress: Progress
    loss: float
    signal: int | None
    early_stop: EarlyStop | None = None


class Trainer:
    """A run, from its start or its latest checkpoint to its end.

    A run that resumes from a checkpoint computes what it would have computed without the stop: on
    the CPU bit for bit, with the same number of threads. Several processes compute what one process
    does in as many rounds of ``gradient_accumulation``, up to rounding, where no layer looks at the
    batch or changes with each pass. Batch and spectral normalisation (GANs) do: each process
    normalises its own part, and what is kept is the first one's.

    Args:
        config: what to do.
        folder: of the run.
        device: ``cpu`` keeps off the GPU, ``cuda:1`` chooses one; None takes what accelerate finds.
        watch: called after each log line with its values.
        objective: in place of the one that ``config.objective`` names.
        run: in place of a plain one in ``folder``.
        keep: see `Recorder`.
        evaluations: what judges the averaged weights beside the objective's own scores.

    Nothing is written before `train`.

    Raises:
        ConfigError: a setting is wrong.
        DataError: the images cannot be read.
        TrainingError: the folder holds a run with other settings.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        device: str | None = None,
        watch: Callable[[dict[str, Any]], None] = lambda values: None,
        objective: Objective | None = None,
        run: Run | None = None,
        keep: Callable[[nn.Module, Progress], None] | None = None,
        evaluations: Sequence[Evaluation] = (),
    ) -> None:
        self.evaluations = evaluations
        self.config = config
        self.run = Run(folder) if run is None else run
        tracker_names(config)  # a wrong one is to be known now
        self.accelerator = build_accelerator(config, device)
        self.device: torch.device = self.accelerator.device
        self.is_main = bool(self.accelerator.is_main_process)
        self.share = Share(
            config.batch_size,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            config.gradient_accumulation,
        )
        self.objective = build_objective(config.objective) if objective is None else objective
        self.objective.to(self.device)
        self.batches = Batches(config.data, config.seed)
        self.models = Models(config, self.objective, self.batches.metadata, self.accelerator)
        self.updates = Updates(config, self.objective, self.models, self.accelerator, self.share)
        self.recorder = self._recorder(watch, keep)
        self.run.check(config, self.batches.metadata, self.objective.recuttable)
        self.progress = self._resume()
        self.lr = self.updates.learning_rate(self.progress.images, self.objective.main)

    def _recorder(
        self,
        watch: Callable[[dict[str, Any]], None],
        keep: Callable[[nn.Module, Progress], None] | None,
    ) -> Recorder:
        config, objective, metadata = self.config, self.objective, self.batches.metadata
        averaged = objective.build(config.network, metadata)[objective.main].to(self.device).eval()
        names = metadata.class_names if config.class_names is None else tuple(config.class_names)
        product = objective.product(averaged, names, config.sampler)
        if isinstance(self.batches.dataset, LatentDataset) and not objective.starts_trained:
            folder = self.batches.dataset.folder / AUTOENCODER
            product = with_autoencoder(product, folder, self.device)
        drawer = product if isinstance(product, Generator) else None
        sampler = None
        if drawer is not None:
            # A wrong setting of the sampler is to be known now, not at the first preview.
            sampler = drawer.build_sampler(config.output.preview_sampler)
        elif config.sampler or config.output.preview_sampler:
            raise ConfigError(
                f"sampler and output.preview_sampler have no effect: the objective "
                f"{config.objective['name']!r} trains no generator; leave them out"
            )
        return Recorder(
            self.run,
            config,
            objective,
            self.models,
            self.accelerator,
            averaged,
            drawer,
            sampler,
            build_validation(config, objective, metadata, self.device),
            watch,
            keep,
            self.evaluations,
            self.inspections(),
        )

    def inspections(self) -> Sequence[Inspection]:
        """The inspections of previews; called once, when the images are known."""
        return ()

    def _resume(self) -> Progress:
        saved = states(self.run.states)
        if not saved:
            return Progress()
        state = load_state(saved[-1], self.device)
        self.models.load(state, saved[-1])
        self.recorder.load_state_dict(state.record)
        return state.progress

    def train(self, on_step: Callable[[Progress], None] = lambda progress: None) -> Outcome:
        """Train to the end, or until SIGINT or SIGTERM asks to stop.

        Args:
            on_step: called after each step.

        Raises:
            TrainingError: the loss is not finite; the last state is from before that.
            OutputError: something could not be written, or another process trains in this folder.
        """
        lock = (
            lock_folder(self.run.folder / ".lock", str(self.run.folder)) if self.is_main else None
        )
        try:
            return self._train(on_step)
        finally:
            if lock is not None:
                lock.release()

    def _train(self, on_step: Callable[[Progress], None]) -> Outcome:
        end, stopped = self.config.num_steps, None
        self._begin()
        first = self.progress.step
        if self.recorder.early_stop is not None:
            end = first  # it ended already
        try:
            self.recorder.begin(self.progress)
            stream = self.batches.stream(first, end, self.share)
            with StopRequest() as stop:
                for step in range(first, end):
                    self._step(step, stream)
                    stopped = self._agreed_signal(stop, step)
                    last = step + 1 == end or stopped is not None
                    self.recorder.after_step(self.progress, self.lr, last)
                    on_step(self.progress)
                    if last or self.recorder.early_stop is not None:
                        break
        finally:
            self.recorder.end()
        early = None
        if self.progress.step < self.config.num_steps:
            early = self.recorder.early_stop
        done = self.progress.step >= end or early is not None
        signal = None if done else stopped
        loss = self.recorder.last_loss
        return Outcome(progress=self.progress, loss=loss, signal=signal, early_stop=early)

    def _begin(self) -> None:
        """Claim the folder, once no other process writes to it."""
        saved = states(self.run.states)
        if saved and read_progress(saved[-1]).step != self.progress.step:
            self.progress = self._resume()  # another process got on since this one looked
        if not saved and self.objective.num_initial_images:
            first = self.batches.first(self.objective.num_initial_images)
            self.models.initialise(*self._on_device(first, "first"))
        dataset, own = self.batches.dataset, not self.objective.starts_trained
        if self.is_main and isinstance(dataset, LatentDataset) and own:
            source = dataset.folder / AUTOENCODER  # the run outlives the set
            keep_autoencoder(self.run.folder, partial(shutil.copytree, source))
        if self.is_main:
            machine = hardware(self.device, self.share.processes)
            self.run.start(self.config, self.batches.metadata, machine)
        self.accelerator.wait_for_everyone()
        self._began, self._seconds_before = time.perf_counter(), self.progress.seconds

    def _step(self, step: int, stream: Iterator[Micro]) -> None:
        numbers = self.share.micro_batches()
        micro_batches = [self._on_device(next(stream), step, number) for number in numbers]
        self.lr = self.updates.learning_rate(step * self.config.batch_size, self.objective.main)
        self.recorder.note_means(self.updates.step(step, micro_batches))
        self.progress = Progress(
            step=step + 1,
            images=(step + 1) * self.config.batch_size,
            seconds=self._seconds_before + time.perf_counter() - self._began,
        )

    def _on_device(self, micro: Micro, *address: str | int) -> MicroBatch:
        stored, labels = (part.to(self.device, non_blocking=True) for part in micro)
        if stored.dtype == torch.uint8:
            return from_uint8(stored), labels
        draws = generator(self.device, self.config.seed, "latents", *address)
        return draw_latents(stored, self.batches.metadata.image_shape[0], draws), labels

    def _agreed_signal(self, stop: StopRequest, step: int) -> int | None:
        """The signal that any process got, the same answer in all of them."""
        if self.share.processes == 1:
            return stop.signal
        if (step + 1) % SIGNAL_STEPS:
            return None
        signal = torch.tensor([stop.signal or 0], device=self.device)
        return int(self.accelerator.gather(signal).max()) or None


def build_accelerator(config: TrainConfig, device: str | None) -> Accelerator:
    """Build the accelerator: device, processes and precision of a run.

    Raises:
        ConfigError: this machine cannot do it.
    """
    # accelerate keeps one precision for the whole process; a second run in it may want another.
    AcceleratorState._reset_state()
    launched()
    try:
        if device is not None and device.startswith("cuda"):
            torch.cuda.set_device(torch.device(device))
        accelerator = Accelerator(mixed_precision=config.mixed_precision.value, cpu=device == "cpu")
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"cannot train on {device or 'this machine'} with mixed_precision="
            f"{config.mixed_precision.value}: {reason}; 'genlab doctor' lists what it can do"
        ) from error
    if device is not None and device.partition(":")[0] != accelerator.device.type:
        raise ConfigError(
            f"--device {device}: accelerate offers {accelerator.device.type} here; 'genlab doctor' "
            "lists the devices"
        )
    return accelerator
