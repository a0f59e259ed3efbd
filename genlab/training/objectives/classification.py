"""Training of image classifiers: judges of classes, and features for scores."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.data.augment.jitter import random_flip, random_shift
from genlab.errors import ConfigError
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Loss, Objective, build_network
from genlab.training.objectives.product import TrainedNetwork
from genlab.training.objectives.shared import check_share


@dataclass(frozen=True, kw_only=True)
class ClassifierObjective(Objective):
    """Tell the class of an image: cross-entropy.

    Attributes:
        label_smoothing: share of the target that is spread over all classes, 0 <= s < 1 (Szegedy
            et al. 2016, arXiv:1512.00567, section 7).
        flip: whether half of the images are mirrored left to right.
        shift: images are moved by up to so many pixels each way; what comes in is black. The two
            are the usual augmentation of CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2).
    """

    family: ClassVar[str] = "classifier"
    phases: ClassVar[tuple[str, ...]] = ("network",)
    main: ClassVar[str] = "network"
    task: ClassVar[str] = "image-classification"
    usage: ClassVar[str] = (
        "To look at images with it:\n\n```\n"
        "genlab eval IMAGES --extractor cnn --weights PATH_TO_THIS_FOLDER --reference REAL_IMAGES "
        "--metrics fd,consistency\n```"
    )
    scores: ClassVar[Mapping[str, str]] = {"accuracy": ".2%"}
    higher_is_better: ClassVar[frozenset[str]] = frozenset(scores)
    recuttable: ClassVar[bool] = False  # batch normalisation sees micro-batches

    label_smoothing: float = 0.0
    flip: bool = True
    shift: int = 0

    def __post_init__(self) -> None:
        check_share("label_smoothing", self.label_smoothing)
        if self.shift < 0:
            raise ConfigError(f"objective.shift must be at least 0, got {self.shift}")

    @override
    def build(self, network: Mapping[str, Any], data: DataMetadata) -> dict[str, nn.Module]:
        if data.num_classes < 2:
            raise ConfigError(
                f"a classifier needs at least 2 classes, the data have {data.num_classes}; set "
                "data.labels=true, or take other data"
            )
        channels, size, _ = data.image_shape
        own = {"img_resolution": size, "in_channels": channels, "num_classes": data.num_classes}
        return {"network": build_network(network, own)}

    def augment(
        self, images: Float[Tensor, "B C H W"], generator: torch.Generator
    ) -> Float[Tensor, "B C H W"]:
        """Images as training shows them: mirrored and moved by chance."""
        if self.flip:
            images = random_flip(images, generator)
        if self.shift:
            images = random_shift(images, self.shift, generator)
        return images

    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        """The cross-entropy in nats; about ln(classes) at first."""
        seen = self.augment(images, generator)
        logits = self._logits(networks[self.main], seen, generator)
        total = F.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=self.label_smoothing
        )
        return Loss(total=total, mean=total.detach() / len(labels))

    def _logits(
        self, network: nn.Module, images: Float[Tensor, "B C H W"], generator: torch.Generator
    ) -> Float[Tensor, "B K"]:
        """The network's logits for augmented images."""
        logits: Tensor = network(images)
        return logits.float()

    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> TrainedNetwork:
        """The network, which keeps the names of its classes; see `Objective.product`.

        Raises:
            ConfigError: there are more or fewer names than classes.
        """
        if class_names is not None:
            num_classes = int(network.config["num_classes"])  # type: ignore[index]  # ConfigMixin
            if len(class_names) != num_classes:
                raise ConfigError(
                    f"got {len(class_names)} class names for {num_classes} classes; give one each"
                )
            names = list(class_names)
            network.register_to_config(class_names=names)  # type: ignore[operator]  # ConfigMixin
        return TrainedNetwork(network, card)

    @torch.no_grad()
    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Top-1 accuracy; see `Objective.evaluate`."""
        right, count = 0, 0
        for images, labels in batches:
            right += int((network(images).argmax(1) == labels).sum())
            count += len(labels)
        return {"accuracy": right / count}
