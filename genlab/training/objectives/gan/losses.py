"""Losses of the discriminator and the generator of a GAN, score by score."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from genlab.registry import Registry
from genlab.training.objectives.shared import check_share

Scores = Float[Tensor, "B 1"]
"""What the discriminator puts out: high for images that it takes for real."""


class AdversarialLoss(ABC):
    """The two players' losses, one number for each score.

    Attributes:
        even: the discriminator's loss, both terms together, where it cannot tell the two apart
            and says 0.
    """

    even: ClassVar[float]

    @property
    def least(self) -> float:
        """The discriminator's loss, both terms together, where it has won."""
        return 0.0

    @abstractmethod
    def of_reals(self, scores: Scores) -> Scores:
        """The discriminator's loss on real images."""

    @abstractmethod
    def of_fakes(self, scores: Scores) -> Scores:
        """The discriminator's loss on made images."""

    @abstractmethod
    def of_generator(self, scores: Scores) -> Scores:
        """The generator's loss on its images."""


@dataclass(frozen=True)
class Hinge(AdversarialLoss):
    """Scores count until they are beyond -1 or 1.

    Source: Lim and Ye 2017, arXiv:1705.02894; BigGAN's choice.
    """

    even: ClassVar[float] = 2.0

    def of_reals(self, scores: Scores) -> Scores:
        """``max(0, 1 - score)``."""
        return F.relu(1 - scores)

    def of_fakes(self, scores: Scores) -> Scores:
        """``max(0, 1 + score)``."""
        return F.relu(1 + scores)

    def of_generator(self, scores: Scores) -> Scores:
        """``-score``."""
        return -scores


@dataclass(frozen=True)
class NonSaturating(AdversarialLoss):
    """Binary cross-entropy, scores being logits; the generator maximises log D.

    Args:
        label_smoothing: 0 <= s < 1; real images have the target 1 - s. Made ones keep the target
            0: smoothing it too would reward what the generator does now (Salimans et al. 2016,
            arXiv:1606.03498, section 3.4).

    Source: Goodfellow et al. 2014, arXiv:1406.2661, section 3.
    """

    even: ClassVar[float] = 2 * math.log(2)

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_share("loss.label_smoothing", self.label_smoothing)

    @property
    def least(self) -> float:
        """The entropy of the target of real images, which no score can beat."""
        return -sum(p * math.log(p) for p in (self.label_smoothing, 1 - self.label_smoothing) if p)

    def of_reals(self, scores: Scores) -> Scores:
        """``-(1 - s) log D - s log(1 - D)``."""
        return F.softplus(-scores) + self.label_smoothing * scores

    def of_fakes(self, scores: Scores) -> Scores:
        """``-log(1 - D)``."""
        return F.softplus(scores)

    def of_generator(self, scores: Scores) -> Scores:
        """``-log D``."""
        return F.softplus(-scores)


LOSSES: Registry[type[AdversarialLoss]] = Registry(
    "genlab.adversarial_losses",
    {
        "hinge": "genlab.training.objectives.gan.losses:Hinge",
        "non-saturating": "genlab.training.objectives.gan.losses:NonSaturating",
    },
    kind="adversarial loss",
)


def feature_matching(fakes: Float[Tensor, "B F"], reals: Float[Tensor, "N F"]) -> Float[Tensor, ""]:
    """Squared distance between the mean features of made and of real images.

    Source: Salimans et al. 2016, arXiv:1606.03498, section 3.1.
    """
    return (fakes.mean(0) - reals.mean(0)).square().sum()
