"""The diffusion family: a network behind its preconditioning, and a sampler."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab.data.labels import check_labels, random_label
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import Preconditioning, from_config
from genlab.errors import CheckpointError, ConfigError, LabelError
from genlab.generators.base import Batch, Generator, SamplerLike
from genlab.generators.folder import read_card, read_index, read_network, write_folder
from genlab.generators.sampler import resolve_sampler
from genlab.samplers import run
from genlab.samplers.base import SamplerStack, Step


class DiffusionGenerator(Generator):
    """A diffusion model that turns seeds and labels into images.

    Args:
        network: the raw network, with ``label_dim`` and a diffusers config that holds
            ``in_channels`` and ``img_resolution``.
        preconditioning: what makes it a denoiser.
        class_names: one name for each class, or None where nobody named them.
        sampler: how this model is sampled best; what is left out is EDM's Heun sampler with 18
            steps.
        has_null_class: whether the network was trained with label dropout, which classifier-free
            guidance needs.
        card: text of the model card, written beside the weights.
    """

    family: ClassVar[str] = "diffusion"

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        *,
        class_names: Sequence[str] | None = None,
        sampler: Mapping[str, Any] | None = None,
        has_null_class: bool = False,
        card: str | None = None,
    ) -> None:
        config: Any = network.config
        self.network = network
        self.preconditioning = preconditioning
        self.num_classes = int(network.label_dim)  # type: ignore[arg-type]  # an int on every network
        self.image_shape = (config.in_channels, config.img_resolution, config.img_resolution)
        self.class_names = _checked_names(class_names, self.num_classes)
        self.has_null_class = has_null_class and self.num_classes > 0
        self.sampler = resolve_sampler(sampler)
        self.card = card
        self.denoiser = PreconditionedDenoiser(
            network,
            preconditioning,
            num_classes=self.num_classes,
            has_null_class=self.has_null_class,
        )

    def stream(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        sampler: SamplerLike = None,
        batch_size: int = 16,
        on_step: Callable[[Any], None] | None = None,
    ) -> Iterator[Batch]:
        """Sample batch by batch; see `Generator.stream`.

        A class that is not given is drawn from a sub-stream of the sample's own
        (`genlab.data.labels.random_label`), so that giving the very class that would have been
        drawn gives the very same image.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        classes = self.choose_labels(seeds, labels)
        stack = self.build_sampler(sampler)
        return self._batches(tuple(seeds), classes, stack, batch_size, on_step)

    def build_sampler(self, sampler: SamplerLike = None) -> SamplerStack:
        """Build a sampler and make sure that this model can be sampled with it.

        Raises:
            ConfigError: a setting is wrong, or the model refuses the guidance or the noise levels.
            UnknownNameError: there is no such preset, solver, schedule or guidance.
        """
        stack = run.build(resolve_sampler(sampler, self.sampler))
        guided: Denoiser = self.denoiser
        for wrap in stack.guidance:
            guided = wrap(guided)
        run.noise_levels(stack.schedule, guided)
        return stack

    def choose_labels(
        self, seeds: Sequence[int], labels: Sequence[int] | None
    ) -> tuple[int, ...] | None:
        """The class of each seed: as given, or each sample's own draw; None without classes.

        Raises:
            LabelError: a class is out of range, or there are not as many as seeds.
        """
        if labels is not None:
            check_labels(labels, seeds, self.num_classes)
            return tuple(int(label) for label in labels)
        if self.num_classes == 0:
            return None
        return tuple(random_label(seed, self.num_classes) for seed in seeds)

    def _batches(
        self,
        seeds: tuple[int, ...],
        labels: tuple[int, ...] | None,
        stack: SamplerStack,
        batch_size: int,
        on_step: Callable[[Step], None] | None,
    ) -> Iterator[Batch]:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            chosen = None if labels is None else labels[part]
            yield self._batch(seeds[part], chosen, stack, on_step)

    @torch.no_grad()
    def _batch(
        self,
        seeds: tuple[int, ...],
        labels: tuple[int, ...] | None,
        stack: SamplerStack,
        on_step: Callable[[Step], None] | None,
    ) -> Batch:
        started = time.perf_counter()
        evaluations = self.denoiser.evaluations
        for step in self.steps(NoiseStream(seeds, self.device), labels, stack):
            images = step.x
            if on_step is not None:
                on_step(step)
        images = images.to(torch.float32)
        _wait_for(images.device)
        return Batch(
            images=images,
            seeds=seeds,
            labels=labels,
            nfe=(self.denoiser.evaluations - evaluations) // len(seeds),
            seconds=time.perf_counter() - started,
        )

    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | None,
        sampler: SamplerStack,
        latents: Float[Tensor, "B C H W"] | None = None,
    ) -> Iterator[Step]:
        """Sample one batch step by step: what `stream` and the pipeline object drain.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample; None for an unconditional model.
            sampler: what `build_sampler` made.
            latents: unit normal start; None draws it from the streams.
        """
        condition = Condition(
            labels=None if labels is None else torch.tensor(labels, dtype=torch.int64)
        )
        self.prepare()
        return run.sample_steps(
            sampler,
            self.denoiser,
            noise=noise,
            condition=condition,
            image_shape=self.image_shape,
            device=self.device,
            latents=latents,
        )

    def facts(self) -> dict[str, Any]:
        """All that the network does not know itself, as ``model_index.json`` holds it."""
        return {
            "family": self.family,
            "preconditioning": self.preconditioning.to_config(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "has_null_class": self.has_null_class,
            "sampler": self.sampler,
        }

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the generator as a pipeline folder; see `genlab.generators.folder`."""
        write_folder(Path(folder), self.network, self.facts(), self.card)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "DiffusionGenerator":
        """Read a generator from a pipeline folder, in float32 on the CPU.

        Raises:
            CheckpointError: something is missing, damaged, or does not fit together.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index.get("family") != cls.family:
            raise CheckpointError(
                f"{folder} holds a generator of the family {index.get('family')!r}; "
                f"this one reads {cls.family!r}"
            )
        return cls(
            read_network(folder, index),
            from_config(index["preconditioning"]),
            class_names=index.get("class_names"),
            sampler=index.get("sampler"),
            has_null_class=index.get("has_null_class", False),
            card=read_card(folder),
        )


def _checked_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if len(names) != num_classes:
        raise LabelError(
            f"{len(names)} class names for a model of {num_classes} classes; "
            "give one for each class"
        )
    return tuple(names)


def _wait_for(device: torch.device) -> None:
    # A GPU runs behind the program; without waiting the clock would stop too early.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
