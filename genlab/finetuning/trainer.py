"""A fine-tuning run from its start, or its latest state, to its end."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import override

from genlab.checkpoints.loading import load
from genlab.errors import TrainingError, is_out_of_memory
from genlab.files import write_text
from genlab.finetuning.adapters.saving import USAGE, write_adapter
from genlab.finetuning.bases import check_has_weights
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.copying import CopyingCheck
from genlab.finetuning.images import conform_to
from genlab.finetuning.objective import FinetuneObjective
from genlab.finetuning.run import FinetuneRun
from genlab.generators.base import Generator
from genlab.training.card import model_card
from genlab.training.loop.evaluation import Evaluation, Inspection
from genlab.training.loop.loop import Outcome, Trainer
from genlab.training.loop.state import Progress, states


class FinetuneTrainer(Trainer):
    """Fine-tunes a base by a method; see `Trainer` for what it shares with training.

    Each time snapshots are stored, and at the end, its folder gets the adapter with the average by
    half-life, so that a run can be sampled while it trains.

    Args:
        config: what to do.
        folder: of the run, which is the adapter's.
        device: see `Trainer`.
        watch: see `Trainer`.
        evaluations: see `Trainer`.

    Raises:
        ConfigError: a setting is wrong, or does not fit base or images.
        DataError: the images cannot be read.
        TrainingError: the folder holds a run with other settings, or of another base.
    """

    config: FinetuneConfig
    objective: FinetuneObjective
    run: FinetuneRun

    def __init__(
        self,
        config: FinetuneConfig,
        folder: Path,
        *,
        device: str | None = None,
        watch: Callable[[dict[str, Any]], None] = lambda values: None,
        evaluations: Sequence[Evaluation] = (),
    ) -> None:
        check_has_weights(config.base)
        base: Generator = load(config.base)
        run = FinetuneRun(folder, base.weights_sha256())
        run.check_base(config.base, str(run.base_sha256))
        objective = FinetuneObjective(config, base)
        data, self.conversion = conform_to(config.data, objective.base, config.base)
        super().__init__(
            replace(config, data=data),
            folder,
            device=device,
            watch=watch,
            objective=objective,
            run=run,
            keep=self._keep,
            evaluations=evaluations,
        )

    @override
    def inspections(self) -> Sequence[Inspection]:
        """The previews are compared with the training images."""
        if not self.config.copying.check:
            return ()
        autoencoder = getattr(self.objective.base, "autoencoder", None)
        return (CopyingCheck(self.batches.dataset, self.config.copying, autoencoder),)

    @override
    def train(self, on_step: Callable[[Progress], None] = lambda progress: None) -> Outcome:
        """Train to the end, or until SIGINT or SIGTERM asks to stop.

        Raises:
            TrainingError: see there; or memory does not suffice.
        """
        try:
            return super().train(on_step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(self._out_of_memory()) from error

    def _out_of_memory(self) -> str:
        config = self.config
        cures = [f"batch_size below {config.batch_size}"]
        if self.share.micro_size > 1:
            rounds = config.gradient_accumulation * 2
            cures.append(f"gradient_accumulation={rounds} (the same batch in smaller parts)")
        if not config.gradient_checkpointing:
            cures.append("gradient_checkpointing=true")
        kept = "the last state is kept" if states(self.run.states) else "no state was saved yet"
        return (
            f"out of memory in a step of {self.share.micro_size} images at a time, {kept}; set "
            f"{' or '.join(cures)}"
        )

    def _keep(self, network: nn.Module, progress: Progress) -> None:
        """Write the adapter and its card."""
        config, objective, data = self.config, self.objective, self.batches.metadata
        adapter = objective.adapter_metadata(
            self.run.base_sha256, self.conversion.to_json(), progress.images
        )
        write_adapter(self.run.folder, objective.method, network, adapter)
        rows = {"Images": self.conversion.describe()} if self.conversion.changes else {}
        shown = replace(config, base=Path(config.base).name)
        choice = "average by half-life"
        card = model_card(self.run, shown, data, objective, choice, progress.images, rows, USAGE)
        write_text(self.run.folder / "README.md", card)
