"""The diffusion family: a network behind its preconditioning, and a sampler."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import Noise
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import Preconditioning, from_config
from genlab.generators.autoencoder import Autoencoder
from genlab.generators.base import Generator, SamplerLike
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.generators.sampler import adjust_sampler, describe_sampler, resolve_sampler
from genlab.networks import DiffusionNetwork
from genlab.samplers import run
from genlab.samplers.base import SamplerStack, SolverStep
from genlab.samplers.guidance.classifier import ClassifierGuidance


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
        autoencoder: of a latent diffusion model: the network works on its latents, and
            `image_shape` is that of the images it decodes.
        card: text of the model card, written beside the weights.

    Attributes:
        state_shape: (C, H, W) of what the network denoises: images or latents.
    """

    family = "diffusion"
    kind = "diffusion model"
    needs = ("preconditioning",)
    network_class = DiffusionNetwork

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        *,
        class_names: Sequence[str] | None = None,
        sampler: Mapping[str, Any] | None = None,
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

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, counted in rows."""
        return self.denoiser.evaluations

    def resolve_sampler(
        self,
        sampler: SamplerLike = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> dict[str, Any]:
        """See `Generator.resolve_sampler`."""
        return adjust_sampler(resolve_sampler(sampler, self.sampler), num_steps, guidance_scale)

    def build_sampler(self, sampler: SamplerLike = None) -> SamplerStack:
        """Build a sampler and make sure that this model can be sampled with it.

        Raises:
            ConfigError: a setting is wrong, or the model refuses the guidance or the noise levels.
            UnknownNameError: there is no such preset, solver, schedule or guidance.
        """
        stack = run.build(self.resolve_sampler(sampler))
        run.noise_levels(stack.schedule, self._guided(stack))
        return stack

    def sampled_classes(self, sampler: SamplerStack) -> int:
        """The model's classes, or those of a classifier that guides a model without any."""
        return self._guided(sampler).num_classes

    def _guided(self, stack: SamplerStack) -> Denoiser:
        guided: Denoiser = self.denoiser
        for wrap in stack.guidance:
            guided = wrap(guided)
        return guided

    def describe_sampler(self, sampler: Mapping[str, Any]) -> str:
        """Solver, steps and guidance."""
        return describe_sampler(sampler)

    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | None,
        sampler: SamplerStack,
        latents: Float[Tensor, "B C H W"] | None = None,
    ) -> Iterator[SolverStep]:
        """Sample one batch step by step; see `Generator.steps`.

        Args:
            noise: one stream for each sample.
            labels: one class for each sample; None for an unconditional model.
            sampler: what `build_sampler` made.
            latents: unit normal start; None draws it from the streams.
        """
        known = None if labels is None else torch.tensor(labels, device=self.device)
        condition = Condition(labels=known)
        self.prepare()
        return run.sample_steps(
            sampler,
            self.denoiser,
            noise=noise,
            condition=condition,
            image_shape=self.state_shape,
            device=self.device,
            latents=latents,
        )

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

    def prepare(self) -> None:
        """See `Generator.prepare`."""
        super().prepare()
        if self.autoencoder is not None:
            self.autoencoder.prepare()

    def identity(self, sampler: SamplerStack | None = None) -> dict[str, Any]:
        """See `Generator.identity`; an autoencoder is more than its weights, it has a scale."""
        whole = super().identity(sampler)
        if self.autoencoder is not None:
            whole["autoencoder"] = self.autoencoder.sha256()
        guidance = () if sampler is None else sampler.guidance
        guides = [wrap.model for wrap in guidance if isinstance(wrap, ClassifierGuidance)]
        if guides:
            hashes = [guide.sha256() for guide in guides if isinstance(guide, NoisyClassifier)]
            whole["classifiers_sha256"] = hashes
        return whole

    def facts(self) -> dict[str, Any]:
        """All that the network does not know itself, as ``model_index.json`` holds it."""
        return {
            **super().facts(),
            "preconditioning": self.preconditioning.to_config(),
            "has_null_class": self.has_null_class,
        }

    @classmethod
    def from_facts(
        cls, network: nn.Module, facts: Mapping[str, Any], card: str | None = None
    ) -> "DiffusionGenerator":
        """See `Generator.from_facts`."""
        autoencoder = facts.get("autoencoder")
        return cls(
            network,
            from_config(facts["preconditioning"]),
            class_names=facts.get("class_names"),
            sampler=facts.get("sampler"),
            has_null_class=facts.get("has_null_class", False),
            autoencoder=None if autoencoder is None else Autoencoder(autoencoder),
            card=card,
        )
