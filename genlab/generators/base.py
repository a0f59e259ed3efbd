"""One interface for every family: a generator turns seeds and labels into images."""

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from genlab import compute
from genlab.data.labels import check_labels, class_index, random_label
from genlab.data.writing.writers import Pixels
from genlab.diffusion.noise import Noise, NoiseStream
from genlab.errors import ConfigError
from genlab.generators.costs import Costs, Meter
from genlab.samplers.base import AnySampler, Hook, Layers, SamplerLike, Step, sampler_layers
from genlab.samplers.stitching import StitchLike
from genlab.samplers.tallies import Tallies
from genlab.saving.adapted import adaptation_of
from genlab.saving.models import own_config, weights_sha256
from genlab.saving.saved import SavedModel


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of `Generator.stream`, which files, evaluation and notebooks all use.

    Attributes:
        images: (B, C, H, W), float32 in [-1, 1] up to overshoot (quantising clips), on the
            generator's device; latents, as the network gives them, where it `draws_latents`.
        seeds: the seed of each image.
        labels: the class of each image, or None for an unconditional generator.
        nfe: network evaluations for each image of this batch (guided steps count every network
            call).
        seconds: wall-clock time of the batch, the device included.
        costs: of a stitched run, what each of its models cost.
        tallies: what the sampler counted beside evaluations, such as rejected images.
    """

    images: Float[Tensor, "B C H W"]
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    nfe: int
    seconds: float
    costs: Costs = field(default_factory=dict)
    tallies: Tallies = field(default_factory=dict)


class Generator(SavedModel):
    """A model that turns seeds and labels into images.

    A family says how it is sampled (`sampler_class`, `check_sampler`, `steps`) and what the network
    does not know itself (`metadata`, `from_metadata`); the rest is here and in `SavedModel`.

    Args:
        network: see `SavedModel`, as for what is not named here.
        sampler: how this model is sampled best, perhaps partial.

    Attributes:
        family: ``diffusion``, ``gan`` or ``autoregressive``.
        network_class: what every network of the family is.
        sampler_class: what its samplers are.
        sampler: what this model is sampled with by default.
    """

    source = "genlab.load reads every family"
    network_class: ClassVar[type[nn.Module]] = nn.Module
    sampler_class: ClassVar[type[AnySampler]]

    def __init__(
        self,
        network: nn.Module,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        sampler: Mapping[str, Any] | AnySampler | None = None,
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
        if not isinstance(sampler, AnySampler):
            own = ("the model's own sampler", sampler or {})
            sampler = self.sampler_class.from_layers([*self.defaults(), own])
        self.sampler: AnySampler = sampler.with_scales_of(None)

    def defaults(self) -> Layers:
        """Sampler defaults that the network requires, below the model's own sampler."""
        return []

    @abstractmethod
    def check_sampler(self, sampler: Any) -> None:
        """Refuse a sampler that this model cannot be sampled with.

        Raises:
            ConfigError: says why.
        """

    def build_sampler(
        self,
        sampler: SamplerLike = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        stitch: StitchLike | None = None,
        over_own: bool = True,
    ) -> Any:
        """Make the sampler of a run, once: typed, with its parts loaded, and fit for this model.

        Args:
            sampler: a preset's name, which stands alone; a mapping, which is merged over the
                model's own; a sampler; or None for the model's own.
            num_steps: solver steps; None keeps them.
            guidance_scale: of guidance by the null class; 1.0 switches it off, None keeps it.
            guidance_interval: (low, high), the noise levels between which guidance by the class
                acts, low < sigma <= high; None keeps it.
            stitch: small models that take the first steps of a diffusion model's run, such as
                ``{"dit-fmnist-s": 0.4}`` (`genlab.samplers.stitching.StitchLike`); an empty one
                takes them away, None keeps them.
            over_own: whether a mapping is merged over the model's own sampler. One that was merged
                with it already must not be a second time: where a preset took the own one's place,
                the options that it leaves out would come back.

        Raises:
            ConfigError: a setting is wrong or does not fit this model.
            UnknownNameError: there is no such preset, or nothing is registered under a name.
        """
        options: dict[str, Any] = {
            "num_steps": num_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
        }
        short = {name: value for name, value in options.items() if value is not None}
        changed = bool(short) or stitch is not None
        if not (sampler or changed):
            sampler = self.sampler
        if changed or not isinstance(sampler, AnySampler):
            own = self.sampler.config if over_own else None
            layers = [*self.defaults(), *sampler_layers(sampler, own)]
            if stitch is not None:
                layers.append(("the argument stitch", self.stitched(stitch)))
            sampler = self.sampler_class.from_layers(layers, **short)
        built = sampler.with_scales_of(self.sampler).load_parts()
        self.check_sampler(built)
        return built

    def stitched(self, stitch: StitchLike) -> dict[str, Any]:
        """The sampler settings that ``stitch`` means.

        Raises:
            ConfigError: the family has no steps that another model could take.
        """
        raise ConfigError(
            f"only the steps of a diffusion model can be taken by another one, and this is one of "
            f"the family {self.family!r}; leave stitch out"
        )

    @abstractmethod
    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | None,
        sampler: Any,
        latents: Float[Tensor, "B ..."] | None = None,
        *,
        hooks: Sequence[Hook] = (),
    ) -> Iterator[Step]:
        """Sample one batch step by step, for `stream` and the pipeline object.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample; None for an unconditional model.
            sampler: what `build_sampler` made.
            latents: the random start, in place of drawing it; None draws it from the streams.
            hooks: look at each step before it is yielded, or replace its state.
        """

    def decode(self, state: Float[Tensor, "B ..."]) -> Float[Tensor, "B C H W"]:
        """A step's state as images, in float32: decoded, where it is one of latents."""
        return state.to(torch.float32)

    def describe_sampler(self, sampler: AnySampler) -> str:
        """How samples are made, in a few words, for above a picture."""
        return sampler.describe()

    @property
    def draws_latents(self) -> bool:
        """Whether samples are latents, because no autoencoder is there to make images of them."""
        return False

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, counted in rows."""
        return self._evaluations

    def stream(
        self,
        seeds: Sequence[int],
        labels: Sequence[int | str] | None = None,
        sampler: SamplerLike = None,
        batch_size: int = 16,
        on_step: Hook | None = None,
        *,
        stitch: StitchLike | None = None,
    ) -> Iterator[Batch]:
        """Sample batch by batch.

        A class that is not given is drawn from a sub-stream of the sample's own
        (`genlab.data.labels.random_label`), so that giving the very class that would have been
        drawn gives the very same image.

        Args:
            seeds: one for each image; the same seed gives the same image whatever the batch size,
                but for rounding: bit for bit at the same batch size, device and number of threads.
            labels: one class for each seed, by number or name; None draws each sample's class from
                its own stream.
            sampler: how to sample; None is the generator's own default.
            batch_size: images at a time; it changes speed and memory, the images by rounding alone.
            on_step: called after each step with the step; a tensor that it returns takes the place
                of the step's state.
            stitch: small models that take the first steps, see `build_sampler`.

        Raises:
            LabelError: a label is out of range, or their number is not that of the seeds.
            ConfigError: a setting is wrong or does not fit this model.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        built = self.build_sampler(sampler, stitch=stitch)
        classes = self.choose_labels(seeds, labels, self.sampled_classes(built))
        return self._batches(tuple(seeds), classes, built, batch_size, on_step)

    def _batches(
        self,
        seeds: tuple[int, ...],
        labels: tuple[int, ...] | None,
        sampler: AnySampler,
        batch_size: int,
        on_step: Hook | None,
    ) -> Iterator[Batch]:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            yield self.draw(seeds[part], None if labels is None else labels[part], sampler, on_step)

    @torch.no_grad()
    def draw(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None,
        sampler: AnySampler,
        on_step: Hook | None = None,
    ) -> Batch:
        """Draw one batch with a sampler that is ready to run.

        Args:
            seeds: one for each image.
            labels: one class for each seed, as `choose_labels` gives them.
            sampler: what `build_sampler` made.
            on_step: see `stream`.
        """
        started = time.perf_counter()
        evaluations = self.evaluations
        hooks = () if on_step is None else (on_step,)
        noise, beside = self.noise(seeds), self.inputs(seeds)
        steps = self.steps(noise, labels, sampler, hooks=hooks, **beside)
        meter = self.meter(sampler)
        for step in steps if meter is None else meter.steps(steps):
            state, tallies = step.x, step.tallies
        images = self.decode(state)
        _wait_for(images.device)
        return Batch(
            images=images,
            seeds=tuple(seeds),
            labels=None if labels is None else tuple(labels),
            nfe=(self.evaluations - evaluations) // len(seeds),
            seconds=time.perf_counter() - started,
            costs={} if meter is None else meter.costs(),
            tallies=tallies,
        )

    def meter(self, sampler: Any) -> Meter | None:
        """The meter of each model's cost in a run; None for a run of one model."""
        return None

    def noise(self, seeds: Sequence[int]) -> Noise:
        """The noise streams of these seeds."""
        return NoiseStream(seeds, self.device)

    def inputs(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What else the `steps` of this model take for these seeds: images to start from."""
        return {}

    def pictures(self, seeds: Sequence[int]) -> Mapping[int, Pixels] | None:
        """The input image of each seed, as pixels (H, W, C); None where it starts from noise."""
        return None

    def sampled_classes(self, sampler: Any) -> int:
        """How many classes there are to sample: the model's own, or those of its guidance."""
        return self.num_classes

    def choose_labels(
        self,
        seeds: Sequence[int],
        labels: Sequence[int | str] | None,
        num_classes: int | None = None,
    ) -> tuple[int, ...] | None:
        """The class of each seed: as given, or each sample's own draw; None without classes.

        Args:
            seeds: one for each image.
            labels: one class for each seed, by number or name, or None.
            num_classes: how many there are to choose from, see `sampled_classes`; None is the
                model's own.

        Raises:
            LabelError: a class is out of range, or there are not as many as seeds.
        """
        count = self.num_classes if num_classes is None else num_classes
        if labels is not None:
            numbers = [
                class_index(label, count, self.class_names) if isinstance(label, str) else label
                for label in labels
            ]
            check_labels(numbers, seeds, count)
            return tuple(int(label) for label in numbers)
        if count == 0:
            return None
        return tuple(random_label(seed, count) for seed in seeds)

    def sample(
        self,
        seeds: int | Sequence[int],
        labels: int | str | Sequence[int | str] | None = None,
        sampler: SamplerLike = None,
        batch_size: int | None = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        stitch: StitchLike | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """All images at once.

        Args:
            seeds: one for each image, or that of the only one.
            labels: one class for each seed, by number or name; a single one goes for all. None
                draws each sample's class from its own stream.
            sampler: see `build_sampler`.
            batch_size: images at a time; None takes up to 64.
            num_steps: see `build_sampler`.
            guidance_scale: see `build_sampler`.
            stitch: see `build_sampler`.

        Returns:
            float32 (N, C, H, W) in [-1, 1], on the generator's device; where the model
            `draws_latents`, these as the network gives them.

        Raises:
            LabelError: see `stream`, or the model does not know a class.
            ConfigError: see `stream`.
        """
        rows = (seeds,) if isinstance(seeds, int) else tuple(seeds)
        classes = [labels] * len(rows) if isinstance(labels, int | str) else labels
        built = self.build_sampler(
            sampler, num_steps=num_steps, guidance_scale=guidance_scale, stitch=stitch
        )
        batches = self.stream(rows, classes, built, batch_size or max(1, min(len(rows), 64)))
        samples = torch.cat([batch.images for batch in batches])
        return samples if self.draws_latents else samples.clamp(-1, 1)

    def describe(self) -> str:
        """Network, size, images, classes and sampler in a few words."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        classes = f"{self.num_classes} classes" if self.num_classes else "unconditional"
        shape = " x ".join(map(str, self.image_shape)) + " latents" * self.draws_latents
        return (
            f"{type(self.network).__name__}, {parameters / 1e6:.1f}M parameters, {shape}, "
            f"{classes}, {self.sampler.describe()}, on {self.device}"
        )

    def __repr__(self) -> str:
        """The model in a line."""
        return f"{type(self).__name__}({self.describe()})"

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
        """Set evaluation mode and the memory layout that is fastest on the device."""
        self.network.eval()
        compute.choose(self.device).prepare(self.network)

    def weights_sha256(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights: a model's identity."""
        named = list(self.network.state_dict().items())
        for part, model in self.parts().items():
            named += [(f"{part}/{name}", value) for name, value in model.state_dict().items()]
        return weights_sha256(named)

    @override
    def metadata(self) -> dict[str, Any]:
        """The sampler, too."""
        return {**super().metadata(), "sampler": dict(self.sampler.config)}

    def identity(self, sampler: AnySampler | None = None) -> dict[str, Any]:
        """Everything the images depend on beside weights, sampler config, seeds and labels.

        Args:
            sampler: what `build_sampler` made: the models that it uses count, too.
        """
        excluded = {"image_shape", "num_classes", "class_names", "sampler", "has_null_class"}
        metadata = {key: value for key, value in self.metadata().items() if key not in excluded}
        parts = {} if sampler is None else sampler.parts
        hashes = {
            f"{kind}s_sha256": [model.sha256() for model in models]
            for kind, models in parts.items()
        }
        adaptation = adaptation_of(self.network)
        adapted = {} if adaptation is None else {"adapted_by": adaptation.identity()}
        return {**metadata, "network": own_config(self.network), **adapted, **hashes}

    @classmethod
    @override
    def suits(cls, network: nn.Module) -> bool:
        return isinstance(network, cls.network_class)


def _wait_for(device: torch.device) -> None:
    # A GPU runs behind the program; without waiting the clock would stop too early.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
