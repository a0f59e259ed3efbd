"""A classifier of noisy images: what classifier guidance follows."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab.diffusion.preconditioning import Preconditioning, from_config
from genlab.errors import CheckpointError, LabelError
from genlab.files import text_sha256
from genlab.generators.folder import read_card, read_index, read_network, write_folder
from genlab.generators.models import own_config, weights_sha256


def noisy_logits(
    network: nn.Module,
    preconditioning: Preconditioning,
    x: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, ""] | Float[Tensor, " B"],
) -> Float[Tensor, "B K"]:
    """What a network behind a preconditioning says of noisy images; see `NoisyClassifier`.

    Args:
        network: called as ``network(c_in x, c_noise)``; it may be wrapped for data-parallel
            training.
        preconditioning: what it is told of the noise level.
        x: noisy images in the unscaled frame, any float dtype.
        sigma: noise level for the whole batch (0-d) or one for each sample.
    """
    known = preconditioning.round_sigma(sigma.to(torch.float32))
    c = preconditioning.coefficients(known)
    scaled = c.c_in.to(x.device).reshape(-1, 1, 1, 1) * x.to(torch.float32)
    dtype = next(network.parameters()).dtype
    logits: Tensor = network(scaled.to(dtype), c.c_noise.to(x.device).reshape(-1))
    return logits.to(torch.float32)


class NoisyClassifier:
    """``log p(class | x; sigma)`` for noisy images in the unscaled frame.

    A network behind a preconditioning, as a diffusion model is, so that it guides every model whose
    images it knows, whatever noise levels either was trained on.

    Args:
        network: called as ``network(c_in x, c_noise)``, gives logits; a diffusers ``ModelMixin``
            whose config holds ``in_channels``, ``img_resolution`` and ``num_classes``.
        preconditioning: what the network is told of the noise level.
        class_names: one name for each class, or None where nobody named them.
        card: text of the model card, written beside the weights.
    """

    family: ClassVar[str] = "noisy-classifier"

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning,
        *,
        class_names: Sequence[str] | None = None,
        card: str | None = None,
    ) -> None:
        config: Any = network.config
        self.network = network
        self.preconditioning = preconditioning
        self.image_shape = (config.in_channels, config.img_resolution, config.img_resolution)
        self.num_classes = int(config.num_classes)
        if class_names is not None and len(class_names) != self.num_classes:
            raise LabelError(
                f"{len(class_names)} class names for a classifier of {self.num_classes} classes; "
                "give one for each class"
            )
        self.class_names = None if class_names is None else tuple(class_names)
        self.card = card

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, ""] | Float[Tensor, " B"]
    ) -> Float[Tensor, "B K"]:
        """Logits, in float32.

        Args:
            x: noisy images in the unscaled frame, any float dtype.
            sigma: noise level for the whole batch (0-d) or one for each sample.
        """
        return noisy_logits(self.network, self.preconditioning, x, sigma)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.network.parameters()).dtype

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

    def facts(self) -> dict[str, Any]:
        """All that the network does not know itself, as ``model_index.json`` holds it."""
        return {
            "family": self.family,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "preconditioning": self.preconditioning.to_config(),
        }

    @classmethod
    def from_facts(
        cls, network: nn.Module, facts: Mapping[str, Any], card: str | None = None
    ) -> "NoisyClassifier":
        """Make the classifier again from its network and what `facts` gave."""
        return cls(
            network,
            from_config(facts["preconditioning"]),
            class_names=facts.get("class_names"),
            card=card,
        )

    def changed(self, card: str | None = None, **facts: Any) -> "NoisyClassifier":
        """The same network as a classifier with other facts, for instance its class names."""
        return self.from_facts(self.network, {**self.facts(), **facts}, card or self.card)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the folder that `from_pretrained` reads; safetensors and JSON only.

        Raises:
            OutputError: the folder is not writable or the disk is full.
        """
        write_folder(Path(folder), self.network, self.facts(), self.card)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "NoisyClassifier":
        """Read a classifier from its folder, in float32 on the CPU.

        Raises:
            CheckpointError: something is missing, damaged, or does not fit together.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index.get("family") != cls.family:
            raise CheckpointError(
                f"{folder} holds no classifier of noisy images but a {index.get('family')!r} model;"
                " make one with genlab train --config classifier-fmnist, or genlab convert"
            )
        network = read_network(folder, index)
        if not _is_noisy_classifier(network):
            raise CheckpointError(
                f"{folder} calls itself a {cls.family}, but {type(network).__name__} is no "
                "classifier of noisy images; fetch or save the model again"
            )
        return cls.from_facts(network, index, read_card(folder))


def _is_noisy_classifier(network: Any) -> bool:
    """Whether it knows its classes and is told the noise level; it may be of anybody's making."""
    known = {"in_channels", "img_resolution", "num_classes"} <= set(network.config)
    return known and len(inspect.signature(network.forward).parameters) >= 2
