"""Training of autoregressive models by maximum likelihood."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.generators.autoregressive import AutoregressiveGenerator, bits_per_dimension
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Loss, Objective, build_network
from genlab.training.objectives.shared import check_share, drop_labels, plain


@dataclass(frozen=True, kw_only=True)
class LikelihoodObjective(Objective):
    """Predict every pixel from those before it: the negative log-likelihood, in bits/dim.

    A network with data-dependent initialisation (PixelCNN++) is fitted to the run's first images.

    Attributes:
        label_dropout: probability of replacing a sample's class by the null class, which guidance
            needs; 0 trains no null class.
    """

    family: ClassVar[str] = "autoregressive"
    phases: ClassVar[tuple[str, ...]] = ("network",)
    main: ClassVar[str] = "network"
    scores: ClassVar[Mapping[str, str]] = {"bpd": ".4f"}
    num_initial_images: ClassVar[int] = 64

    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_share("label_dropout", self.label_dropout)

    @override
    def build(self, network: Mapping[str, Any], data: DataMetadata) -> dict[str, nn.Module]:
        channels, size, _ = data.image_shape
        metadata = {"img_resolution": size, "in_channels": channels, "label_dim": data.num_classes}
        built = build_network(network, metadata)
        if not isinstance(built, AutoregressiveNetwork):
            raise ConfigError(
                f"the objective 'likelihood' trains autoregressive networks, not "
                f"{type(built).__name__}; choose another network.name"
            )
        return {"network": built}

    @torch.no_grad()
    @override
    def initialise(
        self,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
    ) -> None:
        plain(networks[self.main]).initialise(images, labels)

    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        """The bits for each channel of each pixel; 8 is what a model pays that knows nothing."""
        labels = drop_labels(labels, self.label_dropout, generator)
        network = networks[self.main]
        bits = bits_per_dimension(plain(network), network(images, labels), images)
        return Loss.of(bits)

    @override
    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> AutoregressiveGenerator:
        assert isinstance(network, AutoregressiveNetwork)
        return AutoregressiveGenerator(
            network,
            class_names=class_names,
            sampler=sampler or None,
            has_null_class=self.label_dropout > 0,
            card=card,
        )

    @torch.no_grad()
    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """The mean bits/dim of images given their classes; see `Objective.evaluate`."""
        assert isinstance(network, AutoregressiveNetwork)
        total, count = 0.0, 0
        for images, labels in batches:
            bits = bits_per_dimension(network, network(images, labels), images)
            total += float(bits.cpu().double().sum())
            count += len(labels)
        return {"bpd": total / count}
