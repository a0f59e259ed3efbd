"""One interface for every family: a generator turns seeds and labels into images."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab import compute
from genlab.data.labels import check_labels, random_label
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.errors import CheckpointError, ConfigError, LabelError
from genlab.generators.folder import (
    read_card,
    read_index,
    read_network,
    read_parts,
    write_folder,
)
from genlab.generators.models import own_config, weights_sha256
from genlab.registry import Registry
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

G = TypeVar("G", bound="Generator")


class Generator(ABC):
    """A model that turns seeds and labels into images.

    A family says how it is sampled (`resolve_sampler`, `build_sampler`, `steps`) and what the
    network does not know itself (`facts`, `from_facts`); the rest is here.

    Args:
        network: the plain network, as in its paper, a diffusers ``ModelMixin``.
        image_shape: (C, H, W).
        num_classes: 0 for an unconditional model.
        class_names: one name for each class, or None where nobody named them.
        sampler: how this model is sampled best, perhaps partial.
        card: text of the model card, written beside the weights.

    Attributes:
        family: ``diffusion``, ``gan`` or ``autoregressive``.
        network_class: what every network of the family is.
        sampler: the whole sampler config that this model is sampled with by default.
    """

    family: ClassVar[str]
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
        self.network = network
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.class_names = _checked_names(class_names, num_classes)
        self.card = card
        self.sampler: dict[str, Any] = {}
        self.sampler = self.resolve_sampler(sampler)

    # How it is sampled.

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
    @abstractmethod
    def evaluations(self) -> int:
        """Network evaluations so far, counted in rows."""

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
        for step in self.steps(NoiseStream(seeds, self.device), labels, sampler):
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

    def parts(self) -> dict[str, nn.Module]:
        """The models beside the network, by their names in `genlab.generators.folder.PARTS`."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

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

    # What is kept of it.

    def facts(self) -> dict[str, Any]:
        """All that the network does not know itself, as ``model_index.json`` holds it."""
        return {
            "family": self.family,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "sampler": self.sampler,
        }

    def identity(self, sampler: Any = None) -> dict[str, Any]:
        """What decides how the images look, beside weights, sampler config, seeds and labels.

        Args:
            sampler: what `build_sampler` made: a model that it brings along counts, too.
        """
        told = {"image_shape", "num_classes", "class_names", "sampler", "has_null_class"}
        facts = {key: value for key, value in self.facts().items() if key not in told}
        return {**facts, "network": own_config(self.network)}

    @classmethod
    @abstractmethod
    def from_facts(
        cls: type[G], network: nn.Module, facts: Mapping[str, Any], card: str | None = None
    ) -> G:
        """Make the generator again from its network and what `facts` gave.

        Args:
            network: the network.
            facts: what `facts` gave, and the models of `parts` by their names.
            card: text of the model card.

        Raises:
            ConfigError: a fact is wrong.
        """

    def changed(self: G, card: str | None = None, **facts: Any) -> G:
        """The same network as a generator with other facts, for instance its class names."""
        known = {**self.facts(), **self.parts()}
        return self.from_facts(self.network, {**known, **facts}, card or self.card)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the folder that `genlab.load` and the pipeline read; safetensors and JSON only.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        write_folder(Path(folder), self.network, self.facts(), self.card, self.parts())

    @classmethod
    def from_pretrained(cls: type[G], folder: Path | str) -> G:
        """Read a generator of this family from its folder, in float32 on the CPU.

        Raises:
            CheckpointError: something is missing, damaged, of another family, or does not fit
                together.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index.get("family") != cls.family:
            raise CheckpointError(
                f"{folder} holds a generator of the family {index.get('family')!r}; "
                f"this one reads {cls.family!r}"
            )
        network = read_network(folder, index)
        if not isinstance(network, cls.network_class):
            raise CheckpointError(
                f"{folder} calls itself of the family {cls.family!r}, but {type(network).__name__} "
                "is no network of that family; fetch or save the model again"
            )
        facts = {**index, **read_parts(folder, index)}
        return cls.from_facts(network, facts, read_card(folder))


FAMILIES: Registry[type[Generator]] = Registry(
    "genlab.generators",
    {
        "autoregressive": "genlab.generators.autoregressive:AutoregressiveGenerator",
        "diffusion": "genlab.generators.diffusion:DiffusionGenerator",
        "gan": "genlab.generators.gan:GanGenerator",
    },
    kind="family of generators",
)


def read_generator(folder: Path | str) -> Generator:
    """Read a generator of any family from its folder, in float32 on the CPU.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit together.
    """
    family = read_index(Path(folder)).get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"{folder} holds a generator of the family {family!r}; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[family].from_pretrained(folder)


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
