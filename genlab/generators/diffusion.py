"""The diffusion family: a network behind its preconditioning, and a sampler."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from genlab.data.pixels import PICTURE_CHANNELS
from genlab.diffusion.condition import Condition
from genlab.diffusion.noise import Noise
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import Preconditioning, from_config
from genlab.errors import ConfigError
from genlab.files import text_sha256
from genlab.generators.autoencoder import Autoencoder
from genlab.generators.base import Generator
from genlab.generators.costs import LARGE, Meter
from genlab.generators.given import by_seed
from genlab.networks import DiffusionNetwork
from genlab.samplers.base import AnySampler, Hook, SamplerLike, SolverStep
from genlab.samplers.loop import sample_steps
from genlab.samplers.parts import Part
from genlab.samplers.sampler import Sampler
from genlab.samplers.stitching import StitchLike, entries_of
from genlab.saving.models import weights_sha256


class DiffusionGenerator(Generator):
    """A diffusion model that turns seeds and labels into images.

    Args:
        network: the raw network, with ``label_dim`` and a diffusers config that holds
            ``in_channels`` and ``img_resolution``.
        preconditioning: what makes it a denoiser.
        class_names: one name for each class, or None where there are no names.
        sampler: how this model is sampled best; what is left out is EDM's Heun sampler with 18
            steps.
        has_null_class: whether the network was trained with label dropout, which classifier-free
            guidance needs.
        autoencoder: of a latent diffusion model: the network works on its latents, and
            `image_shape` is that of the images it decodes. Where there is none and channels are
            neither grey nor RGB, samples are latents (`draws_latents`).
        card: text of the model card, written beside the weights.

    Attributes:
        state_shape: (C, H, W) of what the network denoises: images or latents.
    """

    family = "diffusion"
    kind = "diffusion model"
    needs = ("preconditioning",)
    network_class = DiffusionNetwork
    sampler_class = Sampler

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        *,
        class_names: Sequence[str] | None = None,
        sampler: Mapping[str, Any] | AnySampler | None = None,
        has_null_class: bool = False,
        autoencoder: Autoencoder | None = None,
        card: str | None = None,
    ) -> None:
        config: Any = network.config
        shape = (config.in_channels, config.img_resolution, config.img_resolution)
        self.autoencoder = autoencoder
        self.state_shape = shape
        super().__init__(
            network,
            image_shape=shape if autoencoder is None else autoencoder.image_shape(shape),
            num_classes=int(network.label_dim),  # type: ignore[arg-type]  # an int on every network
            class_names=class_names,
            sampler=sampler,
            card=card,
        )
        self.preconditioning = preconditioning
        self.has_null_class = has_null_class and self.num_classes > 0
        self.denoiser = PreconditionedDenoiser(
            network,
            preconditioning,
            num_classes=self.num_classes,
            has_null_class=self.has_null_class,
        )

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse guidance, stitched models and noise levels that do not fit."""
        sampler.check_parts(self)
        sampler.grid(sampler.guide(self.denoiser).noise_levels)

    @override
    def stitched(self, stitch: StitchLike) -> dict[str, Any]:
        return {"stitch": entries_of(stitch)}

    @override
    def meter(self, sampler: Sampler) -> Meter | None:
        """A model that is used twice is counted once."""
        if not sampler.stitch:
            return None
        models: dict[str, Any] = {LARGE: self.denoiser}
        for stitch in sampler.stitch:
            denoiser = stitch.model.denoiser
            if not any(denoiser is other for other in models.values()):
                models[_unique(stitch.label, models)] = denoiser
        return Meter(
            self.device, lambda: {name: model.evaluations for name, model in models.items()}
        )

    def sampled_classes(self, sampler: Sampler) -> int:
        """The model's classes, or those of a classifier that guides a model without any."""
        return sampler.guide(self.denoiser).num_classes

    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | Float[Tensor, "B K"] | None,
        sampler: Sampler,
        latents: Float[Tensor, "B C H W"] | None = None,
        *,
        hooks: Sequence[Hook] = (),
        low_res: Float[Tensor, "B C h w"] | None = None,
    ) -> Iterator[SolverStep]:
        """Sample one batch step by step; see `Generator.steps`.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample, or rows of class weights; None for an unconditional
                model.
            sampler: what `build_sampler` made.
            latents: unit normal start; None draws it from the streams.
            low_res: the images, in [-1, 1], that a super-resolution model is to enlarge.
            hooks: look at each step before it is yielded, or replace its state.

        Raises:
            ConfigError: the model enlarges images and there are none, or the other way round.
        """
        self._check_low_res(low_res)
        condition = self.condition(labels)
        if low_res is not None:
            condition = replace(condition, low_res=low_res.to(self.device))
        parts = self.prepare_parts(sampler)
        steps = sample_steps(
            sampler,
            self.denoiser,
            noise=noise,
            condition=condition,
            image_shape=self.state_shape,
            device=self.device,
            latents=latents,
            hooks=hooks,
        )
        return self._counted(steps, parts)

    def condition(self, labels: Sequence[int] | Float[Tensor, "B K"] | None) -> Condition:
        """The condition of a batch, on the generator's device; see `steps`."""
        if labels is None:
            return Condition()
        return Condition(labels=torch.as_tensor(labels, device=self.device))

    def prepare_parts(self, sampler: Sampler) -> list[Part]:
        """Make the network and the models that a sampler uses ready for a batch."""
        parts = [part for parts in sampler.parts.values() for part in parts]
        self.prepare()
        for part in parts:
            part.to(self.device)
            part.prepare()
        return parts

    def _counted(self, steps: Iterator[SolverStep], parts: Sequence[Part]) -> Iterator[SolverStep]:
        """The same steps; what they cost in other models is added to `evaluations`."""
        parts = [part for part in parts if part is not self]
        before = sum(part.evaluations for part in parts)
        for step in steps:
            after = sum(part.evaluations for part in parts)
            self._evaluations, before = self._evaluations + after - before, after
            yield step

    @property
    @override
    def draws_latents(self) -> bool:
        """Recognised by a number of channels that no picture has."""
        return self.autoencoder is None and self.state_shape[0] not in PICTURE_CHANNELS

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, counted in rows; those of a sampler's parts count, too."""
        return self.denoiser.evaluations + self._evaluations

    @property
    def enlarges(self) -> bool:
        """Whether this is a super-resolution model."""
        return bool(getattr(self.network, "super_resolution", False))

    def _check_low_res(self, low_res: Float[Tensor, "B C h w"] | None) -> None:
        if self.enlarges and low_res is None:
            raise ConfigError(
                "this model enlarges images: give the small ones as low_res (genlab sample "
                "--low-res, or the generator's method enlarge)"
            )
        if low_res is None:
            return
        if not self.enlarges:
            raise ConfigError("this model enlarges no images; leave low_res out")
        (channels, *size), small = self.image_shape, tuple(low_res.shape[1:])
        if small[0] != channels or any(
            s >= large for s, large in zip(small[1:], size, strict=True)
        ):
            raise ConfigError(
                f"the model draws images of shape {self.image_shape} from smaller ones of as many "
                f"channels; low_res is of shape {small}"
            )

    def enlarge(
        self,
        images: Float[Tensor, "N C h w"],
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        sampler: SamplerLike = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "N C H W"]:
        """Draw large images of small ones (super-resolution).

        Args:
            images: one for each seed, in [-1, 1], smaller than the model's.
            seeds: one for each image, all different.
            labels: one class for each image; None draws each sample's class from its own stream.
            sampler: how to sample; None is the generator's own default.
            batch_size: images at a time; it changes speed and memory, the images by rounding alone.

        Raises:
            ConfigError: the model enlarges nothing, shapes or numbers do not fit, or a seed stands
                twice.
        """
        enlargement = Enlargement(self, images, seeds)
        return enlargement.sample(seeds, labels, sampler, batch_size)

    def encode(self, images: Float[Tensor, "B C2 H2 W2"]) -> Float[Tensor, "B C H W"]:
        """Images in [-1, 1] as the network knows them, or the means of their latents."""
        return images if self.autoencoder is None else self.autoencoder.encode(images).mean

    def decode(self, state: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The images of a step's state, in float32."""
        if self.autoencoder is None:
            return super().decode(state)
        return self.autoencoder.decode(state)

    def parts(self) -> dict[str, nn.Module]:
        """The autoencoder's model, where there is one."""
        return {} if self.autoencoder is None else {"autoencoder": self.autoencoder.model}

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "DiffusionGenerator":
        """Move the generator, its autoencoder included; see `Generator.to`."""
        super().to(device, dtype)
        if self.autoencoder is not None:
            self.autoencoder.to(device, dtype)
        return self

    def compile(self) -> "DiffusionGenerator":
        """Compile the network and the decoder; see `Generator.compile`."""
        super().compile()
        if self.autoencoder is not None:
            self.autoencoder.compile()
        return self

    @override
    def prepare(self) -> None:
        super().prepare()
        if self.autoencoder is not None:
            self.autoencoder.prepare()

    @override
    def identity(self, sampler: AnySampler | None = None) -> dict[str, Any]:
        """An autoencoder is more than its weights, it has a scale."""
        whole = super().identity(sampler)
        if self.autoencoder is not None:
            whole["autoencoder"] = self.autoencoder.sha256()
        return whole

    def sha256(self) -> str:
        """SHA-256 over all that the model's predictions depend on, as a part of a sampler."""
        return text_sha256([self.weights_sha256(), self.identity()])

    def metadata(self) -> dict[str, Any]:
        """All that the network does not know itself, as ``model_index.json`` holds it."""
        return {
            **super().metadata(),
            "preconditioning": self.preconditioning.to_config(),
            "has_null_class": self.has_null_class,
        }

    @classmethod
    @override
    def from_metadata(
        cls, network: nn.Module, metadata: Mapping[str, Any], card: str | None = None
    ) -> "DiffusionGenerator":
        autoencoder = metadata.get("autoencoder")
        return cls(
            network,
            from_config(metadata["preconditioning"]),
            class_names=metadata.get("class_names"),
            sampler=metadata.get("sampler"),
            has_null_class=metadata.get("has_null_class", False),
            autoencoder=None if autoencoder is None else Autoencoder(autoencoder),
            card=card,
        )


def _unique(label: str, taken: Mapping[str, Any]) -> str:
    """A name for a model beside others, which may have been read from folders of the same name."""
    name, number = label, 2
    while name in taken:
        name, number = f"{label} ({number})", number + 1
    return name


class SharedNetwork(DiffusionGenerator):
    """A generator that shares another one's network and settings.

    Args:
        generator: the other one.
    """

    def __init__(self, generator: DiffusionGenerator) -> None:
        super().__init__(
            generator.network,
            generator.preconditioning,
            class_names=generator.class_names,
            sampler=generator.sampler,
            has_null_class=generator.has_null_class,
            autoencoder=generator.autoencoder,
            card=generator.card,
        )


class Enlargement(SharedNetwork):
    """A super-resolution model whose samples enlarge given images, one for each seed.

    Args:
        generator: whose network and settings it shares.
        images: one for each seed, in [-1, 1], smaller than the model's.
        seeds: those that it can be asked for, all different.

    Raises:
        ConfigError: the model enlarges nothing, shapes or numbers do not fit, or a seed stands
            twice.
    """

    def __init__(
        self,
        generator: DiffusionGenerator,
        images: Float[Tensor, "N C h w"],
        seeds: Sequence[int],
    ) -> None:
        generator._check_low_res(images)
        super().__init__(generator)
        self._images = by_seed(images, seeds)

    @override
    def inputs(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"low_res": torch.stack([self._images[seed] for seed in seeds])}

    @override
    def describe_sampler(self, sampler: AnySampler) -> str:
        """The size of the enlarged images, too."""
        height, width = next(iter(self._images.values())).shape[1:]
        return f"{super().describe_sampler(sampler)}, from {height}x{width}"

    @override
    def identity(self, sampler: AnySampler | None = None) -> dict[str, Any]:
        """The enlarged images are part of the identity."""
        named = [(str(seed), image) for seed, image in self._images.items()]
        return {**super().identity(sampler), "enlarges_sha256": weights_sha256(named)}
