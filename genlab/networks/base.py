"""What the diffusion networks have in common: configuration, labels, gradient checkpointing."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab.errors import ConfigError, LabelError
from genlab.networks.as_model import Model
from genlab.networks.layout import Layout

Labels = Int64[Tensor, " B"] | Float[Tensor, "B K"]


class Network(Model):
    """A network that tells its parts.

    Subclasses decorate their constructor with `register_to_config`, so that ``save_pretrained``
    writes its arguments to config.json and ``from_pretrained`` rebuilds the network.
    """

    def layout(self) -> Layout:
        """What the network is made of, for fine-tuning.

        Raises:
            ConfigError: it is not defined for this network.
        """
        raise ConfigError(
            f"{type(self).__name__} does not tell its parts, so no method can fine-tune it; "
            "choose another model"
        )


class DiffusionNetwork(Network):
    """A raw network F(x; c_noise, class embedding), before any preconditioning.

    Attributes:
        label_dim: number of classes; 0 for an unconditional network.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["map_noise"]  # noqa: RUF012  # a name of diffusers
    gradient_checkpointing = False
    label_dim: int

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " #B"],
        class_embedding: Float[Tensor, "#B E"] | None = None,
        augment_labels: Float[Tensor, "#B A"] | None = None,
    ) -> Float[Tensor, "B D H W"]:
        """Evaluate the raw network.

        Args:
            x: scaled noisy images c_in * x; computed in the dtype of the weights.
            c_noise: the noise level, scaled by the preconditioning; embedded in float32 whatever
                the dtype.
            class_embedding: of `embed_labels`; None means the null class.
            augment_labels: parameters of the training augmentation; None means none.
        """

    def embed_labels(self, labels: Labels | None) -> Float[Tensor, "#B E"] | None:
        """Embed class labels; the result is added where the paper adds it.

        Args:
            labels: class indices (B,) with -1 for the null class; or rows of class weights (B,
                label_dim), zero for the null class; or None for the null class in the whole batch.

        Returns:
            The embedding, one row a sample, or a single row for None; None where the network is
            unconditional.

        Raises:
            LabelError: a class is out of range, or a row has not ``label_dim`` entries.
        """
        if self.label_dim == 0:
            return None
        if labels is None:
            return self._embed_classes(torch.full((1,), -1, device=self.device))
        if not labels.is_floating_point():
            check_classes(labels, self.label_dim)
            return self._embed_classes(labels.to(self.device))
        if labels.shape[1] != self.label_dim:
            raise LabelError(
                f"label rows have {labels.shape[1]} entries, the network has {self.label_dim} "
                "classes; give one weight for each class"
            )
        return self._embed_rows(labels.to(self.device, self.dtype))

    @abstractmethod
    def _embed_rows(self, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B E"]:
        """Embed rows of class weights; they are in the network's dtype."""

    def _embed_classes(self, labels: Int64[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Embed classes; what is none of them is the null class. Tables are looked up instead."""
        classes = torch.arange(self.label_dim, device=self.device)
        return self._embed_rows((labels[:, None] == classes).to(self.dtype))

    def _run(self, block: nn.Module, *args: Tensor) -> Tensor:
        """Run a block; where checkpointing is on, its activations are made again when needed."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            checkpoint: Any = self._gradient_checkpointing_func
            return checkpoint(block, *args)
        return block(*args)


def check_positive(**arguments: int | Sequence[int]) -> None:
    """Refuse constructor arguments that are not positive whole numbers.

    Raises:
        ConfigError: names the argument and its value.
    """
    for name, value in arguments.items():
        numbers: list[Any] = list(value) if isinstance(value, Sequence) else [value]
        if not numbers or any(not isinstance(n, int) or n < 1 for n in numbers):
            raise ConfigError(f"{name} must be made of whole numbers above 0, got {value!r}")


def check_classes(labels: Int64[Tensor, " B"], num_classes: int) -> None:
    """Refuse class indices out of range; on the CPU only, reading them would stall other devices.

    Raises:
        LabelError: tells the range.
    """
    on_cpu = labels.device.type == "cpu"
    if on_cpu and labels.numel() and not -1 <= labels.min() <= labels.max() < num_classes:
        raise LabelError(
            f"class labels must lie in 0 ... {num_classes - 1} (or be -1 for the null class), got "
            f"{labels.tolist()}"
        )


def check_patches(patch_size: int, **sizes: int) -> None:
    """Refuse image sizes that patches do not tile.

    Raises:
        ConfigError: names the argument and both sizes.
    """
    for name, size in sizes.items():
        if size % patch_size:
            raise ConfigError(
                f"{name} {size} cannot be cut into patches of {patch_size}; use a patch_size that "
                "divides it"
            )


def level_resolutions(size: int, num_levels: int, name: str = "img_resolution") -> list[int]:
    """Height and width at each level of a U-Net, finest first.

    Raises:
        ConfigError: the size cannot be halved often enough.
    """
    step = 2 ** (num_levels - 1)
    if size % step:
        near = max(step, round(size / step) * step)
        raise ConfigError(
            f"{name} {size} cannot be halved {num_levels - 1} times, as {num_levels} entries of "
            f"channel_mult ask; use a multiple of {step} (for instance {near}) or fewer entries"
        )
    return [size >> level for level in range(num_levels)]
