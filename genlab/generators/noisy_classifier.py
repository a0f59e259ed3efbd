"""A classifier of noisy images, for classifier guidance."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from genlab.diffusion.denoiser import rows
from genlab.diffusion.preconditioning import Preconditioning, from_config
from genlab.files import text_sha256
from genlab.saving.models import own_config, weights_sha256
from genlab.saving.saved import SavedModel


def noisy_logits(
    network: nn.Module,
    preconditioning: Preconditioning,
    x: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, ""] | Float[Tensor, " B"],
) -> Float[Tensor, "B K"]:
    """The logits of a network behind a preconditioning for noisy images.

    Args:
        network: called as ``network(c_in x, c_noise)``; it may be wrapped for data-parallel
            training.
        preconditioning: scales its input and its noise level.
        x: noisy images in the unscaled frame, any float dtype.
        sigma: noise level for the whole batch (0-d) or one for each sample.
    """
    rounded = preconditioning.round_sigma(sigma.to(torch.float32))
    c = preconditioning.coefficients(rounded)
    scaled = rows(c.c_in, x) * x.to(torch.float32)
    dtype = next(network.parameters()).dtype
    c_noise = c.c_noise.to(x.device, non_blocking=True).reshape(-1)
    logits: Tensor = network(scaled.to(dtype), c_noise)
    return logits.to(torch.float32)


LEAST_SIGMA = 0.002
"""The smallest noise level that a classifier of any noise level is used at: EDM's, where training
stops, too."""


class NoisyClassifier(SavedModel):
    """``log p(class | x; sigma)`` for noisy images in the unscaled frame.

    A network behind a preconditioning, as a diffusion model is, so that it guides every model whose
    images it knows, whatever noise levels either was trained on.

    Args:
        network: called as ``network(c_in x, c_noise)``, gives logits; a diffusers ``ModelMixin``
            whose config holds ``in_channels``, ``img_resolution`` and ``num_classes``.
        preconditioning: scales the network's input and its noise level.
        class_names: one name for each class, or None where there are no names.
        card: text of the model card, written beside the weights.

    Attributes:
        evaluations: network evaluations so far, counted in rows.
    """

    family = "noisy-classifier"
    kind = "classifier of noisy images"
    source = "make one with genlab train --config classifier-fmnist, or genlab convert"
    needs = ("preconditioning",)

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        *,
        class_names: Sequence[str] | None = None,
        card: str | None = None,
    ) -> None:
        config: Any = network.config
        super().__init__(
            network,
            image_shape=(config.in_channels, config.img_resolution, config.img_resolution),
            num_classes=int(config.num_classes),
            class_names=class_names,
            card=card,
        )
        self.preconditioning = preconditioning
        self.evaluations = 0

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, ""] | Float[Tensor, " B"]
    ) -> Float[Tensor, "B K"]:
        """Logits, in float32.

        Args:
            x: noisy images in the unscaled frame, any float dtype.
            sigma: noise level for the whole batch (0-d) or one for each sample.
        """
        self.evaluations += len(x)
        return noisy_logits(self.network, self.preconditioning, x, sigma)

    @property
    def least_sigma(self) -> float:
        """The smallest noise level that it knows."""
        levels = self.preconditioning.levels
        least = LEAST_SIGMA if levels is None else levels.min().item()
        return max(least, self.preconditioning.sigma_min)

    def prepare(self) -> None:
        """Set evaluation mode. Gradients run through it, so its layout stays."""
        self.network.eval()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "NoisyClassifier":
        """Move the network, or change what it computes in."""
        nn.Module.to(self.network, device=device, dtype=dtype)
        return self

    def sha256(self) -> str:
        """SHA-256 over config, preconditioning and weights: equal for those that guide alike."""
        weights = weights_sha256(self.network.state_dict().items())
        config = own_config(self.network)
        return text_sha256([config, self.preconditioning.to_config(), weights])

    @override
    def metadata(self) -> dict[str, Any]:
        """The preconditioning, too."""
        return {**super().metadata(), "preconditioning": self.preconditioning.to_config()}

    @classmethod
    def from_metadata(
        cls, network: nn.Module, metadata: Mapping[str, Any], card: str | None = None
    ) -> "NoisyClassifier":
        """Make the classifier again from its network and what `metadata` gave."""
        return cls(
            network,
            from_config(metadata["preconditioning"]),
            class_names=metadata.get("class_names"),
            card=card,
        )

    @classmethod
    def suits(cls, network: Any) -> bool:
        """Whether it has classes and takes a noise level, whatever its origin."""
        has_classes = {"in_channels", "img_resolution", "num_classes"} <= set(network.config)
        return has_classes and len(inspect.signature(network.forward).parameters) >= 2
