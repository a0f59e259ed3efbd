"""Training of diffusion models by denoising score matching, as EDM does it."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab.data.augment.nonleaky import NUM_LABELS, AugmentPipe
from genlab.diffusion.condition import Condition
from genlab.diffusion.losses import LOSSES, DenoisingLoss, LossDraws
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import IDDPM, Preconditioning, from_config
from genlab.errors import ConfigError, nearest
from genlab.generators.diffusion import DiffusionGenerator
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Loss, Objective, build_network
from genlab.training.objectives.shared import check_share, drop_labels, plain

HELD_OUT_LEVELS = 4
"""Noise levels at which each held-out image is denoised, one in each quarter of those in training.
"""

HELD_OUT_PIXELS = 2**18
"""Pixels that are denoised at a time: 256 images of 32x32, 4 of 256x256."""

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, kw_only=True)
class DiffusionObjective(Objective):
    """Denoise images at random noise levels.

    Attributes:
        preconditioning: ``name`` and options, see `genlab.diffusion.preconditioning`.
        loss: ``name`` and options, see `genlab.diffusion.losses`.
        label_dropout: probability of replacing a sample's class by the null class, which
            classifier-free guidance needs; 0 trains no null class.
        augment: options of the non-leaky augmentation, see
            `genlab.data.augment.nonleaky.AugmentPipe`; None switches it off.
    """

    family: ClassVar[str] = "diffusion"
    phases: ClassVar[tuple[str, ...]] = ("network",)
    main: ClassVar[str] = "network"
    scores: ClassVar[Mapping[str, str]] = {"heldout_loss": ".4f"}

    preconditioning: Mapping[str, Any] = field(default_factory=lambda: {"name": "edm"})
    loss: Mapping[str, Any] = field(default_factory=lambda: {"name": "edm"})
    label_dropout: float = 0.0
    augment: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_share("label_dropout", self.label_dropout)
        # A wrong option is named before training starts.
        _ = self._preconditioning, self._loss, self._pipe

    @cached_property
    def _preconditioning(self) -> Preconditioning:
        return from_config(self.preconditioning)

    @cached_property
    def _loss(self) -> DenoisingLoss:
        options = dict(self.loss)
        return LOSSES.build(options.pop("name", "edm"), **options)

    @cached_property
    def _pipe(self) -> AugmentPipe | None:
        if self.augment is None:
            return None
        names = inspect.signature(AugmentPipe).parameters
        for key in self.augment:
            if key not in names:
                raise ConfigError(f"the augmentation has no option {key!r}; {nearest(key, names)}")
        return AugmentPipe(**self.augment)

    @override
    def build(self, network: Mapping[str, Any], data: DataMetadata) -> dict[str, nn.Module]:
        if data.autoencoder is not None and self.augment is not None:
            raise ConfigError(
                "objective.augment moves and colours images, not latents; leave it out, or train "
                "on the images"
            )
        return {"network": build_network(network, self._from_data(data), " or objective.augment")}

    def _from_data(self, data: DataMetadata) -> dict[str, int]:
        channels, size, _ = data.image_shape
        # The second half of the output predicts a variance.
        twice = isinstance(self._preconditioning, IDDPM) or (
            self._preconditioning.variance.startswith("learned")
        )
        return {
            "img_resolution": size,
            "in_channels": channels,
            "out_channels": channels * (2 if twice else 1),
            "label_dim": data.num_classes,
            **({} if self.augment is None else {"augment_dim": NUM_LABELS}),
        }

    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        """The denoising loss; its ``mean`` is over pixels too: about 1 at first with EDM's."""
        network = networks[self.main]
        augment_labels = None
        if self._pipe is not None:
            images, augment_labels = self._pipe(images, generator)
        denoiser = self._denoiser(network)
        seen = None
        if denoiser.num_classes:
            seen = drop_labels(labels, self.label_dropout, generator)
        condition = Condition(labels=seen, augment_labels=augment_labels)
        terms = self._loss(denoiser, images, condition, self._loss.draw(images, generator))
        return Loss.of(terms.loss, **terms.parts)

    def _denoiser(self, network: nn.Module) -> PreconditionedDenoiser:
        return PreconditionedDenoiser(
            network,
            self._preconditioning,
            num_classes=plain(network).label_dim,
            has_null_class=self.label_dropout > 0,
        )

    @torch.no_grad()
    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """The mean loss of images given their classes, over the noise levels of training.

        Every image is denoised at `HELD_OUT_LEVELS` levels that depend on its number alone, one in
        each quantile of the distribution of training, under noise that is always the same: values
        of the same images can be compared to the last digit that matters. Nothing is augmented and
        no class is hidden.
        """
        denoiser = self._denoiser(network)
        numbers = torch.Generator().manual_seed(0)
        total, seen = 0.0, 0
        for images, labels in batches:
            size = max(1, HELD_OUT_PIXELS // images[0, 0].numel())
            for part, classes in zip(images.split(size), labels.split(size), strict=True):
                condition = Condition(labels=classes if denoiser.num_classes else None)
                order = torch.arange(seen, seen + len(part), dtype=torch.float64)
                # Image by image, so that it does not matter how they are cut into batches.
                noise = torch.randn(
                    (len(part), HELD_OUT_LEVELS, *part.shape[1:]), generator=numbers
                )
                for quantile in range(HELD_OUT_LEVELS):
                    level = (quantile + (order + 0.5) * _GOLDEN % 1) / HELD_OUT_LEVELS
                    if self._loss.normal_levels:
                        level = torch.special.ndtri(level)
                    draws = LossDraws(
                        level=level.float().to(part.device),
                        noise=noise[:, quantile].to(part.device),
                    )
                    loss = self._loss(denoiser, part, condition, draws).loss
                    total += float(loss.flatten(1).mean(1).sum().cpu())
                seen += len(part)
        return {"heldout_loss": total / (seen * HELD_OUT_LEVELS)}

    @override
    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> DiffusionGenerator:
        return DiffusionGenerator(
            network,
            self._preconditioning,
            class_names=class_names,
            sampler=sampler or None,
            has_null_class=self.label_dropout > 0,
            card=card,
        )
