"""Training of diffusion models by denoising score matching, as EDM does it."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab.data.augment import NUM_LABELS, AugmentPipe
from genlab.diffusion.condition import Condition
from genlab.diffusion.losses import LOSSES, DenoisingLoss
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import IDDPM, Preconditioning, from_config
from genlab.errors import ConfigError, nearest
from genlab.generators.diffusion import DiffusionGenerator
from genlab.training.batches import DataFacts
from genlab.training.objective import Loss, Objective, build_network
from genlab.training.shared import check_share, hide_labels, plain


@dataclass(frozen=True, kw_only=True)
class DiffusionObjective(Objective):
    """Denoise images at random noise levels.

    Attributes:
        preconditioning: ``name`` and options, see `genlab.diffusion.preconditioning`.
        loss: ``name`` and options, see `genlab.diffusion.losses`.
        label_dropout: probability of hiding a sample's class, which teaches the model to do without
            and so makes classifier-free guidance possible; 0 teaches no null class.
        augment: options of the non-leaky augmentation, see `genlab.data.augment.AugmentPipe`; None
            switches it off.
    """

    family: ClassVar[str] = "diffusion"
    phases: ClassVar[tuple[str, ...]] = ("network",)
    main: ClassVar[str] = "network"

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
        known = inspect.signature(AugmentPipe).parameters
        for key in self.augment:
            if key not in known:
                raise ConfigError(f"the augmentation has no option {key!r}; {nearest(key, known)}")
        return AugmentPipe(**self.augment)

    def build(self, network: Mapping[str, Any], data: DataFacts) -> dict[str, nn.Module]:
        """See `Objective.build`."""
        if data.autoencoder is not None and self.augment is not None:
            raise ConfigError(
                "objective.augment moves and colours images, not latents; leave it out, or train "
                "on the images"
            )
        return {"network": build_network(network, self._from_data(data), " or objective.augment")}

    def _from_data(self, data: DataFacts) -> dict[str, int]:
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
        denoiser = PreconditionedDenoiser(
            network,
            self._preconditioning,
            num_classes=plain(network).label_dim,
            has_null_class=self.label_dropout > 0,
        )
        seen = None
        if denoiser.num_classes:
            seen = hide_labels(labels, self.label_dropout, generator)
        condition = Condition(labels=seen, augment_labels=augment_labels)
        terms = self._loss(denoiser, images, condition, self._loss.draw(images, generator))
        return Loss.of(terms.loss, **terms.parts)

    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> DiffusionGenerator:
        """See `Objective.product`."""
        return DiffusionGenerator(
            network,
            self._preconditioning,
            class_names=class_names,
            sampler=sampler or None,
            has_null_class=self.label_dropout > 0,
            card=card,
        )
