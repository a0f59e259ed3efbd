"""A GAN's discriminator, for rejection sampling and latent Langevin dynamics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab import schema
from genlab.errors import ConfigError
from genlab.files import text_sha256
from genlab.networks.gan_base import DiscriminatorNetwork
from genlab.networks.layers.spectral_norm import fold
from genlab.saving.models import own_config, weights_sha256
from genlab.saving.saved import SavedModel


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The map from a discriminator's logit to ``log p_data - log p_generator``.

    Attributes:
        slope: of the logit.
        intercept: added to it.
        error_rate: share of the images that the calibrated logit takes for the other kind; one half
            is chance.
        log_loss: mean of ``-log p(kind)`` over these images, in nats; log 2 = 0.693 is chance.
        images: how many real ones it was fitted to, and as many drawn ones.
    """

    slope: float
    intercept: float
    error_rate: float
    log_loss: float
    images: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise ConfigError(f"a calibration's {name} must be finite, got {value}")

    def describe(self) -> str:
        """How well it tells the two kinds apart, in words."""
        return (
            f"calibrated on {self.images:,} real images and as many drawn ones: error rate "
            f"{self.error_rate:.1%} (50% is chance), log loss {self.log_loss:.3f} nats (0.693 is "
            "chance)"
        )


class GanDiscriminator(SavedModel):
    """``log p_data(x | class) - log p_generator(x | class)``, as a discriminator sees it.

    Args:
        network: the plain network; its config holds ``img_resolution`` and ``img_channels``.
        calibration: what makes its logits log density ratios; None where that was not done.
        class_names: one name for each class, or None where there are no names.
        card: text of the model card, written beside the weights.

    Attributes:
        evaluations: network evaluations so far, counted in rows.

    Raises:
        ConfigError: the network's judgement of an image depends on the others in the batch.
    """

    family = "discriminator"
    kind = "discriminator of a GAN"
    source = "make one with genlab train export RUN --discriminator, or genlab convert"
    network: DiscriminatorNetwork

    def __init__(
        self,
        network: DiscriminatorNetwork,
        *,
        calibration: Calibration | None = None,
        class_names: Sequence[str] | None = None,
        card: str | None = None,
    ) -> None:
        if getattr(network, "minibatch", None) is not None:
            raise ConfigError(
                "a discriminator with minibatch discrimination judges an image by the others in "
                "its batch, so nothing can be sampled by it; train one with minibatch_kernels=0"
            )
        config: Any = network.config
        size = config["img_resolution"]
        super().__init__(
            network,
            image_shape=(config["img_channels"], size, size),
            num_classes=network.num_classes,
            class_names=class_names,
            card=card,
        )
        self.calibration = calibration
        self.evaluations = 0

    @property
    def is_calibrated(self) -> bool:
        """Whether its logits are log density ratios, as far as it can tell."""
        return self.calibration is not None

    def __call__(
        self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Calibrated logits, in float32.

        Args:
            images: in [-1, 1].
            labels: one class for each.

        Raises:
            ConfigError: it is not calibrated; `raw_logits` tells the network's own.
        """
        if self.calibration is None:
            raise ConfigError(
                "this discriminator is not calibrated; calibrate it with 'genlab calibrate', or "
                "ask raw_logits"
            )
        return self.calibration.slope * self.raw_logits(images, labels) + self.calibration.intercept

    def raw_logits(
        self, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """The network's own logits, in float32."""
        self.evaluations += len(images)
        logits: Tensor = self.network(images.to(self.dtype), labels)
        return logits[:, 0].to(torch.float32)

    def calibrated(self, calibration: Calibration | None) -> "GanDiscriminator":
        """The same network with this calibration."""
        return GanDiscriminator(
            self.network, calibration=calibration, class_names=self.class_names, card=self.card
        )

    def prepare(self) -> None:
        """Set evaluation mode; spectral normalisation is done once for all calls."""
        self.network.eval()
        fold(self.network)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "GanDiscriminator":
        """Move the network, or change what it computes in."""
        nn.Module.to(self.network, device=device, dtype=dtype)
        return self

    def sha256(self) -> str:
        """SHA-256 over config, calibration and weights: equal for those that judge alike."""
        weights = weights_sha256(self.network.state_dict().items())
        return text_sha256([own_config(self.network), self._plain_calibration(), weights])

    @override
    def metadata(self) -> dict[str, Any]:
        """The calibration, too."""
        return {**super().metadata(), "calibration": self._plain_calibration()}

    def _plain_calibration(self) -> dict[str, Any] | None:
        return None if self.calibration is None else asdict(self.calibration)

    @classmethod
    def from_metadata(
        cls, network: Any, metadata: Mapping[str, Any], card: str | None = None
    ) -> "GanDiscriminator":
        """Make the discriminator again from its network and what `metadata` gave."""
        plain = metadata.get("calibration")
        return cls(
            network,
            calibration=None if plain is None else schema.make(Calibration, plain, "calibration"),
            class_names=metadata.get("class_names"),
            card=card,
        )

    @classmethod
    @override
    def suits(cls, network: nn.Module) -> bool:
        return isinstance(network, DiscriminatorNetwork)
