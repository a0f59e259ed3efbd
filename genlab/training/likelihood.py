"""Training of autoregressive models by maximum likelihood."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab.diffusion.condition import NULL_CLASS
from genlab.errors import ConfigError
from genlab.generators.autoregressive import AutoregressiveGenerator, bits_per_dimension
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.training.batches import DataFacts
from genlab.training.objective import Loss, Objective, build_network


@dataclass(frozen=True, kw_only=True)
class LikelihoodObjective(Objective):
    """Predict every pixel from those before it: the negative log-likelihood, in bits/dim.

    A network whose first weights go by data (PixelCNN++) is fitted to the first images of the run.

    Attributes:
        label_dropout: probability of hiding a sample's class, which teaches the model to do without
            and so makes guidance possible; 0 teaches no null class.
    """

    family: ClassVar[str] = "autoregressive"
    phases: ClassVar[tuple[str, ...]] = ("network",)
    main: ClassVar[str] = "network"
    scores: ClassVar[Mapping[str, str]] = {"bpd": ".4f"}
    num_initial_images: ClassVar[int] = 64

    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise ConfigError(
                f"objective.label_dropout must lie between 0 and 1, got {self.label_dropout}"
            )

    def build(self, network: Mapping[str, Any], data: DataFacts) -> dict[str, nn.Module]:
        """See `Objective.build`."""
        channels, size, _ = data.image_shape
        facts = {"img_resolution": size, "in_channels": channels, "label_dim": data.num_classes}
        return {"network": build_network(network, facts)}

    @torch.no_grad()
    def initialise(
        self,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
    ) -> None:
        """See `AutoregressiveNetwork.initialise`."""
        _plain(networks[self.main]).initialise(images, labels)

    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        """The bits for each channel of each pixel; 8 is what a model pays that knows nothing."""
        if self.label_dropout:
            drop = torch.rand(len(labels), generator=generator, device=generator.device)
            labels = labels.masked_fill((drop < self.label_dropout).to(labels.device), NULL_CLASS)
        network = networks[self.main]
        bits = bits_per_dimension(_plain(network), network(images, labels), images)
        return Loss(total=bits.sum(), mean=bits.detach().mean())

    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> AutoregressiveGenerator:
        """See `Objective.product`."""
        return AutoregressiveGenerator(
            _plain(network),
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
        plain = _plain(network)
        total, count = 0.0, 0
        for images, labels in batches:
            bits = bits_per_dimension(plain, plain(images, labels), images)
            total += float(bits.double().sum())
            count += len(labels)
        return {"bpd": total / count}


def _plain(network: nn.Module) -> AutoregressiveNetwork:
    """The network inside what trains it in parallel."""
    inside = getattr(network, "module", network)
    if not isinstance(inside, AutoregressiveNetwork):
        raise ConfigError(
            f"the objective 'likelihood' trains autoregressive networks, not "
            f"{type(inside).__name__}; choose another network.name"
        )
    return inside
