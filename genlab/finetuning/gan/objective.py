"""A GAN tuned by images: the generator, and a discriminator that learns the new classes."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab.checkpoints.discriminators import load_discriminator
from genlab.data.class_names import same_names
from genlab.errors import ConfigError
from genlab.finetuning.class_tables.classes import network_with_classes
from genlab.finetuning.class_tables.origins import ClassOrigin
from genlab.finetuning.layouts import layout_of
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan import BigGANGenerator
from genlab.networks.biggan_deep import BigGANDeepGenerator
from genlab.networks.biggan_deep_hf import BigGANDeepHF
from genlab.networks.conditional_gan import ConditionalGenerator
from genlab.networks.layers.gan_layers import Statistics
from genlab.networks.layers.spectral_norm import SpectralNorm
from genlab.saving.models import own_config
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Loss, build_network
from genlab.training.objectives.gan.objective import DISCRIMINATOR, GENERATOR, GanObjective
from genlab.training.objectives.shared import plain

PATH = "path"

DISCRIMINATORS: dict[type[nn.Module], str] = {
    BigGANGenerator: "biggan-discriminator",
    BigGANDeepGenerator: "biggan-deep-discriminator",
    BigGANDeepHF: "biggan-deep-discriminator",
    ConditionalGenerator: "conditional-discriminator",
}
"""Kind of generator -> the discriminator that it is trained with."""


@dataclass(frozen=True, kw_only=True)
class GanFinetuning(GanObjective):
    """The objective of a GAN, whose discriminator starts from that of the base.

    What of the generator trains is the fine-tuning method's choice; the discriminator trains as a
    whole, or above some blocks (FreezeD). Of a network that is frozen in part the singular vectors
    of frozen weights stay as they are.

    Attributes:
        discriminator: ``path``, the folder that ``genlab train export --discriminator`` (or
            ``genlab convert``) wrote of the base's discriminator; it gets the classes of the data
            as the generator does. Without it a fresh one is built, by ``name`` and the
            constructor's arguments; it knows nothing yet, and what it says first may spoil the
            generator.
        freeze_discriminator: how many of the discriminator's lowest blocks are frozen, with all
            that comes before them.
        statistics: what the generator's batch normalisation uses. ``stored``: by what the base
            has stored, so that nothing changes but what trains. ``batch``: by the batch, as when
            the base was trained; what is stored follows the new classes, and old ones are drawn
            otherwise.

    Source: Mo, Cho and Shin 2020, arXiv:2002.10964 (FreezeD); see `GanObjective` for the rest.
    """

    discriminator: Mapping[str, Any] = field(default_factory=dict)
    freeze_discriminator: int = 0
    statistics: Literal["stored", "batch"] = "stored"

    def __post_init__(self) -> None:
        super().__post_init__()
        if PATH in self.discriminator and len(self.discriminator) > 1:
            other = next(key for key in self.discriminator if key != PATH)
            raise ConfigError(
                f"objective.discriminator.{other} has no effect beside objective.discriminator."
                "path, whose folder says what the discriminator is; leave one of them out"
            )
        if self.freeze_discriminator < 0:
            raise ConfigError(
                f"objective.freeze_discriminator must be at least 0, got "
                f"{self.freeze_discriminator}"
            )
        if self.freeze_discriminator and PATH not in self.discriminator:
            raise ConfigError(
                "objective.freeze_discriminator keeps what a discriminator has learned, and a "
                "fresh one has learned nothing; name the base's with objective.discriminator.path"
            )

    def beside(
        self,
        generator: nn.Module,
        base: GanGenerator,
        origins: Sequence[ClassOrigin],
        data: DataMetadata,
    ) -> dict[str, nn.Module]:
        """The networks that train, or are kept, beside the generator.

        Args:
            generator: prepared by the method.
            base: with its own classes.
            origins: where the data's classes begin; empty where they are the base's.
            data: metadata of the images.

        Raises:
            ConfigError: the discriminator is of other classes or images than the base, or has fewer
                blocks than are to be frozen.
            CheckpointError: the discriminator cannot be read.
        """
        judge = self._trained(base, origins) if PATH in self.discriminator else None
        judge = self._fresh(base, data) if judge is None else judge
        self.check_discriminator(judge)
        freeze_lower(judge, self.freeze_discriminator)
        networks = self.with_histories({GENERATOR: generator, DISCRIMINATOR: judge})
        return {name: network for name, network in networks.items() if name != GENERATOR}

    def _trained(self, base: GanGenerator, origins: Sequence[ClassOrigin]) -> nn.Module:
        path = self.discriminator[PATH]
        judge = load_discriminator(path)
        if judge.image_shape != base.image_shape:
            raise ConfigError(
                f"the discriminator {path} looks at images of {judge.image_shape} (channels, "
                f"height, width), and the base draws {base.image_shape}; give the base's own"
            )
        if judge.num_classes != base.num_classes or not _alike(judge.class_names, base.class_names):
            raise ConfigError(
                f"the discriminator {path} knows other classes than the base; give the base's own"
            )
        network = network_with_classes(judge.network, origins) if origins else judge.network
        return copy.deepcopy(network).requires_grad_(True)

    def _fresh(self, base: GanGenerator, data: DataMetadata) -> nn.Module:
        channels, size, _ = data.image_shape
        options = dict(self.discriminator)
        if "name" not in options:
            kind = next((k for k in DISCRIMINATORS if isinstance(base.network, k)), None)
            if kind is None:
                raise ConfigError(
                    f"no discriminator is known for a {type(base.network).__name__}; name one with "
                    "objective.discriminator.name"
                )
            width = own_config(base.network).get("channels")
            options = {"channels": width, **options, "name": DISCRIMINATORS[kind]}
        metadata = {
            "img_resolution": size,
            "img_channels": channels,
            "num_classes": data.num_classes,
        }
        return build_network(options, metadata, section="objective.discriminator")

    @override
    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        with (
            settled(plain(networks[GENERATOR]), stored=self.statistics == "stored"),
            settled(plain(networks[DISCRIMINATOR])),
        ):
            return super().compute_loss(phase, networks, images, labels, generator)


def freeze_lower(discriminator: nn.Module, num_blocks: int) -> None:
    """Freeze a discriminator's lowest blocks and all before them (FreezeD).

    Raises:
        ConfigError: it has fewer blocks.
    """
    if not num_blocks:
        return
    blocks = layout_of(discriminator).blocks
    if num_blocks > len(blocks):
        raise ConfigError(
            f"objective.freeze_discriminator={num_blocks}: the discriminator has {len(blocks)} "
            "blocks; freeze fewer"
        )
    named = list(discriminator.named_parameters())
    inside = [
        i for i, (name, _) in enumerate(named) if name.startswith(f"{blocks[num_blocks - 1]}.")
    ]
    for _, parameter in named[: inside[-1] + 1]:  # in the order of the computation
        parameter.requires_grad_(False)


@contextmanager
def settled(network: nn.Module, *, stored: bool = False) -> Iterator[None]:
    """Within this context frozen spectral norms do not change, nor (if ``stored``) statistics.

    Args:
        network: in training.
        stored: whether batch normalisation uses stored statistics, as in evaluation.
    """
    still = [
        module
        for module in network.modules()
        if (isinstance(module, SpectralNorm) and not module.weight.requires_grad)
        or (stored and isinstance(module, Statistics))
    ]
    before = [module.training for module in still]
    for module in still:
        module.training = False  # not eval(), which reaches the layers within
    try:
        yield
    finally:
        for module, training in zip(still, before, strict=True):
            module.training = training


def _alike(a: Sequence[str] | None, b: Sequence[str] | None) -> bool:
    return a is None or b is None or same_names(a, b)
