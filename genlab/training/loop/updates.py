"""One step of a run: the objective's phases in order, each an update of one network."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor

from genlab.training.config import TrainConfig
from genlab.training.loop.batches import Share
from genlab.training.loop.models import Models
from genlab.training.loop.schedule import schedule_factor
from genlab.training.loop.seeds import derive, generator
from genlab.training.objectives.base import Loss, Objective

MicroBatch = tuple[Float[Tensor, "B C H W"], Int64[Tensor, " B"]]
"""Images in [-1, 1] and their labels, on the device."""


class Updates:
    """Takes steps.

    Args:
        config: of the run.
        objective: whose phases a step runs.
        models: what it changes.
        accelerator: whose processes share the work.
        share: this process's part of it.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        models: Models,
        accelerator: Accelerator,
        share: Share,
    ) -> None:
        self.config, self.objective, self.models = config, objective, models
        self.accelerator, self.share = accelerator, share
        trained = {objective.main, *objective.phases}
        self._options = {name: config.optimizer.of(name) for name in trained}
        for phase in range(len(objective.phases)):
            objective.rows(phase, share.micro_size)  # refuses a size before training starts

    def learning_rate(self, images: int, name: str) -> float:
        """A network's learning rate in the step that starts after ``images`` images."""
        return self._options[name].lr * schedule_factor(self.config, images)

    def step(self, step: int, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
        """Update every network, and the averages.

        Args:
            step: its number in the run, from 0.
            micro_batches: this process's, as many as `Share.rounds`.

        Returns:
            Name of a phase's network, or of a part of its loss -> the mean over the images and the
            phases of that name; still on the device.
        """
        images = step * self.config.batch_size
        means = defaultdict[str, list[Tensor]](list)
        for phase, name in enumerate(self.objective.phases):
            self.models.optimizers[name].zero_grad(set_to_none=True)
            for round_, micro in enumerate(micro_batches):
                loss = self._micro_batch(step, phase, round_, micro)
                for key, value in {name: loss.mean, **loss.parts}.items():
                    means[key].append(value)
            self._descend(name, self.learning_rate(images, name))
        self.models.update_averages(images)
        return {key: torch.stack(values).mean() for key, values in means.items()}

    def _micro_batch(self, step: int, phase: int, round_: int, micro: MicroBatch) -> Loss:
        """Add the gradient of one micro-batch."""
        name, seed = self.objective.phases[phase], self.config.seed
        address = (step, phase, self.share.micro_batches()[round_])
        torch.manual_seed(derive(seed, "dropout", *address))
        draws = generator(self.accelerator.device, seed, "draws", *address)
        rows = self.objective.rows(phase, len(micro[0]))
        images, labels = (tensor[rows] for tensor in micro)
        # Gradients of several processes meet once, with the last micro-batch.
        apart = round_ + 1 < self.share.rounds
        with self.accelerator.no_sync(self.models.networks[name]) if apart else nullcontext():
            with self.accelerator.autocast():
                loss = self.objective.compute_loss(
                    name, self.models.networks, images, labels, draws
                )
            # Processes average their gradients by themselves.
            self.accelerator.backward(loss.total / (len(images) * self.share.rounds))
        return loss

    def _descend(self, name: str, lr: float) -> None:
        """Step one optimizer along the gradients gathered."""
        optimizer, options = self.models.optimizers[name], self._options[name]
        self.accelerator.unscale_gradients(optimizer)
        parameters = list(self.models.networks[name].parameters())
        # With float16 the gradient scaler itself drops a step whose gradients are not finite.
        if options.zero_nonfinite_gradients and self.accelerator.scaler is None:
            for gradient in (p.grad for p in parameters if p.grad is not None):
                torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
        self.objective.adjust_gradients(name, self.models.unwrapped)
        if options.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
