"""Training of classifiers of noisy images, which guide diffusion models."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab.diffusion.preconditioning import Preconditioning, from_config
from genlab.generators.noisy_classifier import NoisyClassifier, noisy_logits
from genlab.samplers.schedules.karras import Karras
from genlab.training.objectives.classification import ClassifierObjective

LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise levels that validation asks about; images have a standard deviation of about 0.5."""


@dataclass(frozen=True, kw_only=True)
class NoisyClassifierObjective(ClassifierObjective):
    """Tell the class of an image under any amount of noise: cross-entropy.

    Every step of a sampler is seen equally often: timesteps of a discrete model evenly, noise
    levels of a continuous one as EDM's schedule spaces them, from 80 to 0.002.

    Attributes:
        preconditioning: ``name`` and options, see `genlab.diffusion.preconditioning`: that of the
            models to be guided is the obvious choice, but any one guides any model.

    Source: Dhariwal and Nichol (arXiv:2105.05233), Section 4.
    """

    family: ClassVar[str] = NoisyClassifier.family
    usage: ClassVar[str] = (
        "To guide a diffusion model with it:\n\n```\n"
        "genlab sample MODEL 'sampler.guidance=[{name: classifier, classifier: PATH_TO_THIS_FOLDER,"
        " scale: 1}]' -o samples/\n```"
    )
    recuttable: ClassVar[bool] = True
    scores: ClassVar[Mapping[str, str]] = {f"accuracy_at_{level:g}": ".2%" for level in LEVELS}
    higher_is_better: ClassVar[frozenset[str]] = frozenset(scores)

    preconditioning: Mapping[str, Any] = field(default_factory=lambda: {"name": "edm"})

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._preconditioning  # a wrong option is named before training starts

    @cached_property
    def _preconditioning(self) -> Preconditioning:
        return from_config(self.preconditioning)

    def _logits(
        self, network: nn.Module, images: Float[Tensor, "B C H W"], generator: torch.Generator
    ) -> Float[Tensor, "B K"]:
        """The network's logits under random amounts of noise."""
        level = torch.rand(len(images), generator=generator, device=generator.device)
        noise = torch.randn(images.shape, generator=generator, device=generator.device)
        sigma = self.sigma(level).to(images.device)
        x = images + sigma.reshape(-1, 1, 1, 1) * noise.to(images.device)
        return noisy_logits(network, self._preconditioning, x, sigma)

    def sigma(self, level: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Noise levels of uniform numbers in [0, 1); the largest of a continuous model at 0."""
        levels = self._preconditioning.levels
        if levels is not None:
            return levels[(level.cpu().double() * len(levels)).to(torch.int64)].float()
        schedule = Karras()
        high = min(schedule.sigma_max, self._preconditioning.sigma_max)
        low = max(schedule.sigma_min, self._preconditioning.sigma_min)
        root = 1 / schedule.rho
        return (high**root + level * (low**root - high**root)) ** schedule.rho

    def product(  # type: ignore[override]  # a classifier of another kind
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> NoisyClassifier:
        """The network behind its preconditioning; see `Objective.product`."""
        return NoisyClassifier(network, self._preconditioning, class_names=class_names, card=card)

    @torch.no_grad()
    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Top-1 accuracy at each of `LEVELS`, under noise that is always the same."""
        numbers = torch.Generator().manual_seed(0)
        right, count = torch.zeros(len(LEVELS)), 0
        for images, labels in batches:
            noise = torch.randn(images.shape, generator=numbers).to(images.device)
            for i, level in enumerate(LEVELS):
                sigma = torch.tensor(level)
                logits = noisy_logits(network, self._preconditioning, images + level * noise, sigma)
                right[i] += (logits.argmax(1) == labels).sum().cpu()
            count += len(labels)
        return dict(zip(self.scores, (right / count).tolist(), strict=True))
