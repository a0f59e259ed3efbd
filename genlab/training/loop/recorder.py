"""Write logs, checkpoints, snapshots, scores and previews while a run trains.

Nothing here changes what is computed. Within a step the state comes last, so that a run that dies
in between does the step's other files again.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genlab.errors import TrainingError
from genlab.generators.base import Generator
from genlab.samplers.base import AnySampler
from genlab.training.config import TrainConfig
from genlab.training.loop.early_stopping import EarlyStop, Stopper
from genlab.training.loop.evaluation import Evaluation, Inspection, Subject, objective_scores
from genlab.training.loop.logs import Log
from genlab.training.loop.models import Models
from genlab.training.loop.preview import draw_preview
from genlab.training.loop.snapshots import list_snapshots, prune_snapshots, save_snapshots
from genlab.training.loop.state import Progress, save_state, states
from genlab.training.machine import peak_memory_mib
from genlab.training.objectives.base import Objective
from genlab.training.run import Run


class Recorder:
    """Keeps the run's files.

    Args:
        run: its folder.
        config: of the run.
        objective: whose losses are logged, and which may have a run watched.
        models: what is saved.
        accelerator: only the main process writes, but all meet where something is written.
        averaged: a second main network, for the averaged weights: previews are drawn with it, and
            it is what is validated.
        generator: around it; None draws no previews.
        sampler: how it draws them.
        validate: judges it; None does not.
        watch: called after each log line with its values.
        keep: writes what else is wanted of the averaged network each time snapshots are stored;
            None writes nothing. Where the run stops early, only the best network so far is written.
        evaluations: what else judges it.
        inspections: what looks at the previews.

    Attributes:
        scores: what the log lines hold beside losses, when it is measured.

    Raises:
        ConfigError: the run is to be stopped by a score that it has not.
    """

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        objective: Objective,
        models: Models,
        accelerator: Accelerator,
        averaged: nn.Module,
        generator: Generator | None,
        sampler: AnySampler | None,
        validate: Callable[[nn.Module], dict[str, float]] | None,
        watch: Callable[[dict[str, Any]], None],
        keep: Callable[[nn.Module, Progress], None] | None = None,
        evaluations: Sequence[Evaluation] = (),
        inspections: Sequence[Inspection] = (),
    ) -> None:
        self.run, self.config, self.models = run, config, models
        self.accelerator, self.is_main = accelerator, bool(accelerator.is_main_process)
        self.averaged, self.generator, self.sampler = averaged, generator, sampler
        self.validate, self.watch, self.keep = validate, watch, keep
        self.objective, self._watch = objective, objective.watch()
        self.evaluations, self.inspections = evaluations, inspections
        self._stopper = self._build_stopper()
        self.last_loss = math.nan
        self._means: list[dict[str, Tensor]] = []
        self._pending: Tensor | None = None

    def _build_stopper(self) -> Stopper:
        output = self.config.output
        scores = {} if self.validate is None else objective_scores(self.objective)
        intervals: dict[str, float | None] = dict.fromkeys(scores, output.snapshot_kimg)
        for evaluation in self.evaluations:
            scores |= evaluation.scores
            kimg = output.snapshot_kimg if evaluation.kimg is None else evaluation.kimg
            intervals |= dict.fromkeys(evaluation.scores, kimg)
        for inspection in self.inspections if self._draws else ():
            scores |= inspection.scores
            intervals |= dict.fromkeys(inspection.scores, output.preview_kimg)
        self.scores = scores
        return Stopper(self.config.stopping, scores, intervals)

    @property
    def early_stop(self) -> EarlyStop | None:
        """Why the run has ended before its length, or None."""
        return self._stopper.stop

    def state_dict(self) -> dict[str, Any]:
        """The means since the last log line, and the states of watch and stopper."""
        watched = None if self._watch is None else self._watch.state_dict()
        # Plain values: a state is read onto the run's device, and Metal has no float64.
        pending = None if self._pending is None else self._pending.tolist()
        return {"pending": pending, "watch": watched, "stopping": self._stopper.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; an empty one, of old checkpoints, starts afresh."""
        pending, watched = state.get("pending"), state.get("watch")
        self._pending = None
        if pending is not None:
            self._pending = torch.as_tensor(pending, dtype=torch.float64, device="cpu")
        if self._watch is not None and watched is not None:
            self._watch.load_state_dict(watched)
        if "stopping" in state:
            self._stopper.load_state_dict(state["stopping"])

    def begin(self, progress: Progress) -> None:
        """Start the clocks; drop what an earlier process wrote beyond the last checkpoint."""
        self._line_began = self._state_saved = time.perf_counter()
        self._log = None
        if self.is_main:
            self._log = Log(self.run.folder, progress.step, self.config, self.accelerator)
            prune_snapshots(self.run.snapshots, progress.images)
        if self.objective.starts_trained and progress.step == 0 and self._draws:
            self._draw_preview(progress)  # what all later ones are compared with

    def end(self) -> None:
        """Write out what is buffered."""
        if self._log is not None:
            self._log.close()

    def note_means(self, means: dict[str, Tensor]) -> None:
        """Keep the losses of a step, and their parts, without waiting for the device."""
        self._means.append(means)

    def after_step(self, progress: Progress, lr: float, last: bool) -> None:
        """Write what is due; afterwards `early_stop` tells whether the run is to end.

        Args:
            progress: after the step.
            lr: the learning rate of the step.
            last: whether the run ends here, or stops.
        """
        output = self.config.output
        ended = progress.step >= self.config.num_steps
        log = progress.step % output.log_steps == 0
        snapshot = self._crossed(output.snapshot_kimg, progress)
        preview = self._draws and self._crossed(output.preview_kimg, progress)
        evaluations = [each for each in self.evaluations if self._is_due(each, progress)]
        due = log or snapshot or preview or bool(evaluations)
        if not (due or last):
            return
        steps = len(self._means)
        means = self._take_means(progress, due)  # first, since it refuses some that are not finite
        scores = self._scores() if snapshot or last else {}
        scores |= self._evaluate(self.evaluations if ended else evaluations, progress)
        if preview or (last and self._draws):
            scores |= self._draw_preview(progress)
        improved = self._judge(scores, progress, ended)
        if self.early_stop is not None and not last:
            last = True
            if self._draws and not preview:
                scores |= self._draw_preview(progress)
        self._write_line(progress, lr, steps, means, scores)
        if due:  # a run that stops in between is to be judged as one that does not
            self._check_watch(progress, means)
        if snapshot or last or improved:
            self._save_snapshots(progress, keep=improved or not self._stopper.has_best)
        if last or (log and self._state_is_due()):
            self._save_state(progress)

    def _is_due(self, evaluation: Evaluation, progress: Progress) -> bool:
        kimg = evaluation.kimg
        return self._crossed(self.config.output.snapshot_kimg if kimg is None else kimg, progress)

    def _evaluate(self, evaluations: Sequence[Evaluation], progress: Progress) -> dict[str, float]:
        if not evaluations or not self.is_main:
            return {}
        paused = time.perf_counter()
        self._average()
        subject = Subject(
            progress=progress,
            network=self.averaged,
            generator=self.generator,
            sampler=self.sampler,
            folder=self.run.folder,
        )
        values: dict[str, float] = {}
        for evaluation in evaluations:
            values |= evaluation(subject)
        self._line_began += time.perf_counter() - paused
        return values

    def _judge(self, scores: Mapping[str, float], progress: Progress, ended: bool) -> bool:
        """Whether the score that may stop the run is the best so far; in all processes alike.

        What is measured because a signal stops the run does not count: the run that goes on is to
        be judged as one that was never stopped.
        """
        stopper = self._stopper
        if stopper.metric is None or not (ended or self._crossed(stopper.kimg, progress)):
            return False
        value = torch.tensor([scores.get(stopper.metric, math.nan)])
        values = self.accelerator.gather(value.to(self.accelerator.device))
        return stopper.note(float(values[0]), progress.images)

    @property
    def _draws(self) -> bool:
        return self.generator is not None and self.config.output.preview_kimg is not None

    def _crossed(self, kimg: float | None, progress: Progress) -> bool:
        """Whether the step went over a multiple of ``kimg``."""
        if kimg is None:
            return False
        every = kimg * 1000
        return progress.images // every > (progress.images - self.config.batch_size) // every

    def _take_means(self, progress: Progress, due: bool) -> dict[str, float]:
        """Over the steps since the last line that was due; here the program waits for the device.

        Where none is due now, the run stops here, and whoever goes on needs these steps again.
        """
        names = list(self._means[0])
        rows = torch.stack([torch.stack([means[name] for name in names]) for means in self._means])
        values = self.accelerator.reduce(rows, "mean").cpu().double()
        if self._pending is not None:
            values = torch.cat([self._pending, values])
        self._refuse_bad_losses(values, progress)
        self._means, self._pending = [], None if due else values
        return dict(zip(names, values.mean(0).tolist(), strict=True))

    def _write_line(
        self,
        progress: Progress,
        lr: float,
        steps: int,
        means: dict[str, float],
        scores: dict[str, float],
    ) -> None:
        losses = [means[name] for name in dict.fromkeys(self.objective.phases)]
        self.last_loss = sum(losses) / len(losses)
        now = time.perf_counter()
        images = steps * self.config.batch_size
        line = {
            "step": progress.step,
            "kimg": progress.images / 1000,
            "loss": self.last_loss,
            **({f"loss_{name}": mean for name, mean in means.items()} if len(means) > 1 else {}),
            **self.objective.inspect(self.models.unwrapped),
            **scores,
            "lr": lr,
            "images_per_second": images / (now - self._line_began),
            "seconds": progress.seconds,
            "peak_memory_mib": peak_memory_mib(),
        }
        self._line_began = now
        if self._log is not None:
            self._log.write(**line)
            self.watch(line)

    def _check_watch(self, progress: Progress, means: dict[str, float]) -> None:
        """End a run that its objective's watch reports as failed.

        Raises:
            TrainingError: says why, and what is left.
        """
        trouble = self._watch(progress.images / 1000, means) if self._watch is not None else None
        if trouble is None:
            return
        before = [s.images for s in list_snapshots(self.run.snapshots)]
        good = max((images for images in before if images <= trouble.kimg * 1000), default=None)
        kept = (
            "no snapshot is from before that"
            if good is None
            else f"'genlab train export {self.run.folder} --images {good}' takes the weights from "
            "before that"
        )
        raise TrainingError(
            f"{trouble.problem}; {kept}; {trouble.cure}, and train into another folder with -o"
        )

    def _refuse_bad_losses(self, values: Tensor, progress: Progress) -> None:
        bad = (~values.isfinite()).any(1).nonzero()
        if len(bad) == 0:
            return
        first = int(bad[0])
        step = progress.step - len(values) + first + 1
        saved = states(self.run.states)
        kept = f"the state {saved[-1]} is from before that" if saved else "no state was saved yet"
        raise TrainingError(
            f"the loss of step {step} is {values[first].sum():g}, {kept}; lower optimizer.lr, "
            "lengthen schedule.warmup_kimg or train without fp16, into another folder with -o"
        )

    def _state_is_due(self) -> bool:
        minutes = (time.perf_counter() - self._state_saved) / 60
        due = torch.tensor([minutes >= self.config.output.state_minutes])
        # The main process's clock counts.
        return bool(self.accelerator.gather(due.to(self.accelerator.device))[0])

    def _save_state(self, progress: Progress) -> None:
        self.models.check_finite(progress)
        if self.is_main:
            keep = self.config.output.keep_states
            state = self.models.state(progress)
            state.record = self.state_dict()
            save_state(self.run.states, state, keep)
        self._state_saved = time.perf_counter()
        self.accelerator.wait_for_everyone()

    def _save_snapshots(self, progress: Progress, *, keep: bool) -> None:
        if self.is_main:
            dtype = getattr(torch, self.config.output.snapshot_dtype.value)
            save_snapshots(self.run, self.models.averages, progress, dtype)
        if self.is_main and keep and self.keep is not None:
            paused = time.perf_counter()
            self._average()
            self.keep(self.averaged, progress)
            self._line_began += time.perf_counter() - paused

    def _scores(self) -> dict[str, float]:
        """The objective's scores of the averaged weights; the log's speed is that of training."""
        if self.validate is None or not self.is_main:
            return {}
        paused = time.perf_counter()
        self._average()
        scores = self.validate(self.averaged)
        self._line_began += time.perf_counter() - paused
        return scores

    def _average(self) -> None:
        """Copy the averaged weights: a generator lays its network out for sampling."""
        tensors = self.averaged.state_dict()
        for name, value in self.models.averages[0].state_dict().items():
            tensors[name].copy_(value)

    def _draw_preview(self, progress: Progress) -> dict[str, float]:
        """Draw a preview, and return the values of the inspections."""
        if self.generator is None or not self.is_main:
            return {}
        paused = time.perf_counter()
        self._average()
        path = self.run.previews / f"{progress.images:09d}.png"
        title = f"{progress.images / 1000:.0f} thousand images"
        with self.accelerator.autocast():
            preview = draw_preview(
                self.generator, self.config.output.preview_count, self.sampler, path, title
            )
        if self._log is not None:
            self._log.picture("samples", np.asarray(preview.picture), progress.step)
        values: dict[str, float] = {}
        for inspection in self.inspections if progress.step else ():
            values |= inspection(preview, progress)
        self._line_began += time.perf_counter() - paused  # the speed logged is that of training
        return values
