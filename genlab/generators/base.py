"""One interface for every family: a generator turns seeds and labels into images."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab import compute
from genlab.data.labels import check_labels, random_label
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.errors import ConfigError
from genlab.generators.models import own_config, weights_sha256
from genlab.generators.saved import SavedModel
from genlab.samplers.base import Step


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What `Generator.stream` yields; files, evaluation and notebooks all drain it.

    Attributes:
        images: (B, C, H, W), float32 in [-1, 1] up to overshoot (quantising clips), on the
            generator's device.
        seeds: the seed of each image.
        labels: the class of each image, or None for an unconditional generator.
        nfe: network evaluations for each image of this batch (guided steps count every network
            call).
        seconds: wall-clock time of the batch, the device included.
    """

    images: Float[Tensor, "B C H W"]
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    nfe: int
    seconds: float


SamplerLike = str | Mapping[str, Any] | None
"""A preset's name, a (partial) sampler config, or None for the generator's own default."""

OnStep = Callable[[Step], None]


class Generator(SavedModel):
    """A model that turns seeds and labels into images.

    A family says how it is sampled (`resolve_sampler`, `build_sampler`, `steps`) and what the
    network does not know itself (`facts`, `from_facts`); the rest is here and in `SavedModel`.

    Args:
        network: see `SavedModel`, as for what is not named here.
        sampler: how this model is sampled best, perhaps partial.

    Attributes:
        family: ``diffusion``, ``gan`` or ``autoregressive``.
        network_class: what every network of the family is.
        sampler: the whole sampler config that this model is sampled with by default.
    """

    source = "genlab.load reads every family"
    network_class: ClassVar[type[nn.Module]] = nn.Module

    def __init__(
        self,
        network: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        sampler: Mapping[str, Any] | None = None,
        card: str | None = None,
    ) -> None:
        super().__init__(
            network,
            image_shape=image_shape,
            num_classes=num_classes,
            class_names=class_names,
            card=card,
        )
        self._evaluations = 0
        self.sampler: dict[str, Any] = {}
        self.sampler = self.resolve_sampler(sampler)

    @abstractmethod
    def resolve_sampler(
        self,
        sampler: SamplerLike = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> dict[str, Any]:
        """The whole sampler config that ``sampler`` stands for.

        Args:
            sampler: a preset's name, which stands alone; a mapping, which is merged over the
                model's own; or None.
            num_steps: solver steps, by their short name; None keeps them.
            guidance_scale: of guidance by the null class; 1.0 switches it off, None keeps it.

        Raises:
            ConfigError: a key, an option or a value is wrong, or does not apply to this family.
            UnknownNameError: nothing is registered under a name.
        """

    @abstractmethod
    def build_sampler(self, sampler: SamplerLike = None) -> Any:
        """Make what `steps` runs, refusing settings that are wrong or do not fit this model."""

    @abstractmethod
    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | None,
        sampler: Any,
        latents: Float[Tensor, "B ..."] | None = None,
    ) -> Iterator[Step]:
        """Sample one batch step by step: what `stream` and the pipeline object drain.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample; None for an unconditional model.
            sampler: what `build_sampler` made.
            latents: the random start, in place of drawing it; None draws it from the streams.
        """

    def decode(self, state: Float[Tensor, "B ..."]) -> Float[Tensor, "B C H W"]:
        """A step's state as images, in float32: decoded, where it is one of latents."""
        return state.to(torch.float32)

    @abstractmethod
    def describe_sampler(self, sampler: Mapping[str, Any]) -> str:
        """A whole sampler config in a few words, for above a picture."""

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, counted in rows."""
        return self._evaluations

    def stream(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        sampler: SamplerLike = None,
        batch_size: int = 16,
        on_step: OnStep | None = None,
    ) -> Iterator[Batch]:
        """Sample batch by batch.

        A class that is not given is drawn from a sub-stream of the sample's own
        (`genlab.data.labels.random_label`), so that giving the very class that would have been
        drawn gives the very same image.

        Args:
            seeds: one for each image; the same seed gives the same image whatever the batch size.
            labels: one class index for each seed; None draws each sample's class from its own
                stream.
            sampler: how to sample; None is the generator's own default.
            batch_size: images at a time; it changes speed and memory, never the images.
            on_step: called after each step with the step.

        Raises:
            LabelError: a label is out of range, or their number is not that of the seeds.
            ConfigError: a setting is wrong or does not fit this model.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        built = self.build_sampler(sampler)
        classes = self.choose_labels(seeds, labels, self.sampled_classes(built))
        return self._batches(tuple(seeds), classes, built, batch_size, on_step)

    def sampled_classes(self, sampler: Any) -> int:
        """How many classes there are to sample: the model's own, or those of its guidance."""
        return self.num_classes

    def choose_labels(
        self, seeds: Sequence[int], labels: Sequence[int] | None, num_classes: int | None = None
    ) -> tuple[int, ...] | None:
        """The class of each seed: as given, or each sample's own draw; None without classes.

        Args:
            seeds: one for each image.
            labels: one class for each seed, or None.
            num_classes: how many there are to choose from, see `sampled_classes`; None is the
                model's own.

        Raises:
            LabelError: a class is out of range, or there are not as many as seeds.
        """
        known = self.num_classes if num_classes is None else num_classes
        if labels is not None:
            check_labels(labels, seeds, known)
            return tuple(int(label) for label in labels)
        if known == 0:
            return None
        return tuple(random_label(seed, known) for seed in seeds)

    def _batches(
        self,
        seeds: tuple[int, ...],
        labels: tuple[int, ...] | None,
        sampler: Any,
        batch_size: int,
        on_step: OnStep | None,
    ) -> Iterator[Batch]:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            chosen = None if labels is None else labels[part]
            yield self._batch(seeds[part], chosen, sampler, on_step)

    @torch.no_grad()
    def _batch(
        self,
        seeds: tuple[int, ...],
        labels: tuple[int, ...] | None,
        sampler: Any,
        on_step: OnStep | None,
    ) -> Batch:
        started = time.perf_counter()
        evaluations = self.evaluations
        for step in self._seeded_steps(seeds, labels, sampler):
            state = step.x
            if on_step is not None:
                on_step(step)
        images = self.decode(state)
        _wait_for(images.device)
        return Batch(
            images=images,
            seeds=seeds,
            labels=labels,
            nfe=(self.evaluations - evaluations) // len(seeds),
            seconds=time.perf_counter() - started,
        )

    def _seeded_steps(
        self, seeds: tuple[int, ...], labels: tuple[int, ...] | None, sampler: Any
    ) -> Iterator[Step]:
        """Sample the batch of these seeds; what makes images from given ones looks them up here."""
        return self.steps(NoiseStream(seeds, self.device), labels, sampler)

    def sample(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        sampler: SamplerLike = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """All images at once: float32 (N, C, H, W) in [-1, 1], on the generator's device."""
        size = batch_size or max(1, min(len(seeds), 64))
        return torch.cat([b.images for b in self.stream(seeds, labels, sampler, size)]).clamp(-1, 1)

    def bits_per_dimension(
        self, images: Float[Tensor, "B C H W"], labels: Sequence[int] | None = None
    ) -> Float[Tensor, " B"]:
        """How many bits the model needs for each channel of each pixel of given images.

        Args:
            images: 8-bit images, as floats in [-1, 1].
            labels: one class for each image; None for an unconditional model.

        Raises:
            ConfigError: the family has no likelihood.
        """
        raise ConfigError(
            f"a generator of the family {self.family!r} tells no likelihood; bits per dimension "
            "need an autoregressive model"
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Generator":
        """Move the generator.

        Args:
            device: None stays where it is.
            dtype: what the network computes in; parts that need float32 keep it. None changes
                nothing.

        Raises:
            ConfigError: there is no such device.
        """
        if device is not None:
            try:
                self.network.to(torch.device(device))
            except (
                RuntimeError,
                AssertionError,
            ) as error:  # torch raises either for a missing device
                raise ConfigError(
                    f"cannot use the device {str(device)!r}: {str(error).splitlines()[0]}; "
                    "genlab doctor lists the devices"
                ) from error
        if dtype is not None:
            kept = getattr(self.network, "_keep_in_fp32_modules", None) or ()
            for name, part in self.network.named_children():
                if name not in kept:
                    part.to(dtype)
        return self

    def compile(self) -> "Generator":
        """Compile the network: the first batch of a size takes minutes, later ones are faster."""
        self.prepare()
        self.network.compile()
        return self

    def prepare(self) -> None:
        """Switch training's behaviour off and lay the network out as its device likes it best."""
        self.network.eval()
        compute.choose(self.device).prepare(self.network)

    def weights_sha256(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights: a model's identity."""
        named = list(self.network.state_dict().items())
        for part, model in self.parts().items():
            named += [(f"{part}/{name}", value) for name, value in model.state_dict().items()]
        return weights_sha256(named)

    def facts(self) -> dict[str, Any]:
        """See `SavedModel.facts`; the sampler, too."""
        return {**super().facts(), "sampler": self.sampler}

    def identity(self, sampler: Any = None) -> dict[str, Any]:
        """What decides how the images look, beside weights, sampler config, seeds and labels.

        Args:
            sampler: what `build_sampler` made: a model that it brings along counts, too.
        """
        told = {"image_shape", "num_classes", "class_names", "sampler", "has_null_class"}
        facts = {key: value for key, value in self.facts().items() if key not in told}
        return {**facts, "network": own_config(self.network)}

    @classmethod
    def suits(cls, network: nn.Module) -> bool:
        """See `SavedModel.suits`."""
        return isinstance(network, cls.network_class)


def _wait_for(device: torch.device) -> None:
    # A GPU runs behind the program; without waiting the clock would stop too early.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
