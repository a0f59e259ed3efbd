"""Training of class-conditional GANs: BigGAN's recipe, and the switches of earlier ones."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.generators.gan import GanGenerator
from genlab.networks.gan_base import GeneratorNetwork
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Loss, Objective, Watch, build_network
from genlab.training.objectives.gan.collapse import CollapseWatch
from genlab.training.objectives.gan.diffaugment import DiffAugment
from genlab.training.objectives.gan.losses import LOSSES, AdversarialLoss, Scores, feature_matching
from genlab.training.objectives.gan.regularizers import History, add_orthogonal_gradients
from genlab.training.objectives.shared import plain

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


@dataclass(frozen=True, kw_only=True)
class GanObjective(Objective):
    """A class-conditional GAN: a generator trained against a discriminator.

    The discriminator takes some updates, each on its own part of the batch, then the generator one;
    every update draws latents and classes of its own. The network of the configuration is the
    generator.

    Attributes:
        discriminator: ``name`` and the constructor's arguments of the other network.
        loss: ``name`` and options, see `genlab.training.objectives.gan.losses.LOSSES`.
        discriminator_steps: updates of the discriminator in a step; ``batch_size`` counts the real
            images of all of them.
        generator_images: images that the generator's update draws, for each real one of a
            discriminator's update.
        split: whether the discriminator sees real and made images apart; else in one batch. It
            matters to layers that look at the batch.
        augment: transformations of all that the discriminator sees, see
            `genlab.training.objectives.gan.diffaugment`; empty does without.
        generator_ortho: strength of the generator's orthogonal regularisation.
        discriminator_ortho: that of the discriminator's.
        ortho_unit_rows: whether it pulls rows to unit length too, see
            `genlab.training.objectives.gan.regularizers`.
        feature_matching: whether the generator matches the mean features that the discriminator's
            last layer sees, in place of fooling it.
        historical_averaging: strength of the pull of both networks towards their past.
        collapse_loss: a discriminator has won whose loss is below this share of the way from the
            least there can be to an undecided one's.
        collapse_kimg: the run ends when that lasts for so many thousand images; null trains on.

    Source: Brock et al. 2018, arXiv:1809.11096; the switches: Salimans et al. 2016,
    arXiv:1606.03498.
    """

    family: ClassVar[str] = "gan"
    main: ClassVar[str] = GENERATOR
    recuttable: ClassVar[bool] = False  # batch and spectral normalisation see micro-batches

    discriminator: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "biggan-discriminator"}
    )
    loss: Mapping[str, Any] = field(default_factory=lambda: {"name": "hinge"})
    discriminator_steps: int = 1
    generator_images: float = 1.0
    split: bool = False
    augment: Sequence[str] = ()
    generator_ortho: float = 0.0
    discriminator_ortho: float = 0.0
    ortho_unit_rows: bool = False
    feature_matching: bool = False
    historical_averaging: float = 0.0
    collapse_loss: float = 0.01
    collapse_kimg: float | None = 100.0

    def __post_init__(self) -> None:
        rules = {
            "discriminator_steps >= 1": self.discriminator_steps >= 1,
            "generator_images > 0": self.generator_images > 0,
            "generator_ortho >= 0": self.generator_ortho >= 0,
            "discriminator_ortho >= 0": self.discriminator_ortho >= 0,
            "historical_averaging >= 0": self.historical_averaging >= 0,
            "collapse_loss >= 0": self.collapse_loss >= 0,
            "collapse_kimg > 0": self.collapse_kimg is None or self.collapse_kimg > 0,
        }
        for rule, holds in rules.items():
            if not holds:
                value = getattr(self, rule.split()[0])
                raise ConfigError(f"the objective gan needs {rule}, got {value}")
        _ = self._loss, self._augment  # a wrong option is named before training starts

    @cached_property
    def _loss(self) -> AdversarialLoss:
        options = dict(self.loss)
        loss: AdversarialLoss = LOSSES.build(options.pop("name", "hinge"), **options)
        return loss

    @cached_property
    def _augment(self) -> DiffAugment:
        return DiffAugment(self.augment)

    @property
    def phases(self) -> tuple[str, ...]:
        """The discriminator's updates, then the generator's."""
        return (DISCRIMINATOR,) * self.discriminator_steps + (GENERATOR,)

    def build(self, network: Mapping[str, Any], data: DataMetadata) -> dict[str, nn.Module]:
        """Generator, discriminator, and their histories where wanted; see `Objective.build`."""
        if data.num_classes < 1:
            raise ConfigError(
                "the objective gan draws images of classes, and the data have none; set "
                "data.labels=true, or take other data"
            )
        channels, size, _ = data.image_shape
        metadata = {
            "img_resolution": size,
            "img_channels": channels,
            "num_classes": data.num_classes,
        }
        networks = {
            GENERATOR: build_network(network, metadata),
            DISCRIMINATOR: build_network(
                self.discriminator, metadata, section="objective.discriminator"
            ),
        }
        if not isinstance(networks[GENERATOR], GeneratorNetwork):
            raise ConfigError(
                f"the network {network['name']!r} draws nothing; the objective gan needs a "
                "generator, for instance network.name=conditional-generator"
            )
        self.check_discriminator(networks[DISCRIMINATOR])
        return self.with_histories(networks)

    def check_discriminator(self, network: nn.Module) -> None:
        """Refuse a discriminator that could tell real images by batch statistics."""
        if getattr(network, "minibatch", None) is not None and not self.split:
            raise ConfigError(
                "minibatch discrimination tells real from made images by their batch; set "
                "objective.split=true to keep them apart"
            )

    def with_histories(self, networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """The networks, and where wanted their histories."""
        if not self.historical_averaging:
            return networks
        return networks | {_history(name): History(network) for name, network in networks.items()}

    def rows(self, phase: int, count: int) -> slice:
        """Each update of the discriminator has its own part; see `Objective.rows`."""
        if count % self.discriminator_steps:
            raise ConfigError(
                f"{count} images (batch_size, shared by processes and gradient_accumulation) "
                f"cannot be shared by {self.discriminator_steps} updates of the discriminator; "
                f"make them a multiple of it or change objective.discriminator_steps"
            )
        size = count // self.discriminator_steps
        if round(size * self.generator_images) < 1:
            raise ConfigError(
                f"objective.generator_images={self.generator_images:g} of {size} real images "
                "(batch_size, shared by processes, gradient_accumulation and updates of the "
                "discriminator) leave the generator none to draw; raise it or batch_size"
            )
        start = phase * size if phase < self.discriminator_steps else 0
        return slice(start, start + size)

    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        """The loss of one player; its ``parts`` are the discriminator's losses by kind of image."""
        if phase == DISCRIMINATOR:
            return self._discriminator_loss(networks, images, labels, generator)
        return self._generator_loss(networks, images, labels, generator)

    def draw(
        self, network: GeneratorNetwork, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B Z"], Int64[Tensor, " B"]]:
        """Latents, unit normal, and classes, all equally likely."""
        device = generator.device
        z = torch.randn(count, network.dim_z, generator=generator, device=device)
        labels = torch.randint(network.num_classes, (count,), generator=generator, device=device)
        return z, labels

    def _discriminator_loss(
        self,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        network: GeneratorNetwork = plain(networks[GENERATOR])
        z, classes = self.draw(network, len(images), generator)
        with torch.no_grad():
            made = network(z, network.embed_labels(classes))
        seen = self._augment(torch.cat([made.float(), images]), generator)
        all_classes = torch.cat([classes, labels])
        of_made, of_real = self._judge(networks[DISCRIMINATOR], seen, all_classes)
        fake, real = self._loss.of_fakes(of_made).mean(), self._loss.of_reals(of_real).mean()
        return _mean_loss(fake + real, len(images), fake=fake, real=real)

    def _judge(
        self,
        discriminator: nn.Module,
        images: Float[Tensor, "N C H W"],
        labels: Int64[Tensor, " N"],
    ) -> tuple[Scores, Scores]:
        """Scores of the made images, which come first, and of the real ones."""
        if self.split:
            halves = zip(images.chunk(2), labels.chunk(2), strict=True)
            made, real = (discriminator(*half).float() for half in halves)
        else:
            made, real = discriminator(images, labels).float().chunk(2)
        return made, real

    def _generator_loss(
        self,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        network: GeneratorNetwork = plain(networks[GENERATOR])
        judge: nn.Module = plain(networks[DISCRIMINATOR])
        count = round(len(images) * self.generator_images)
        z, classes = self.draw(network, count, generator)
        made = networks[GENERATOR](z, network.embed_labels(classes))
        seen = self._augment(made.float(), generator)
        with frozen(judge):
            if not self.feature_matching:
                return _mean_loss(
                    self._loss.of_generator(judge(seen, classes).float()).mean(), len(images)
                )
            with torch.no_grad():
                target = features(judge, self._augment(images, generator), labels)
            loss = feature_matching(features(judge, seen, classes), target)
            return _mean_loss(loss, len(images))

    @torch.no_grad()
    def adjust_gradients(self, phase: str, networks: Mapping[str, nn.Module]) -> None:
        """Orthogonal regularisation (not of shared class embeddings) and historical averaging."""
        network = networks[phase]
        strength = self.generator_ortho if phase == GENERATOR else self.discriminator_ortho
        if strength:
            shared = getattr(network, "shared", None)
            skip = () if shared is None else tuple(shared.parameters())
            add_orthogonal_gradients(network, strength, skip, unit_rows=self.ortho_unit_rows)
        if self.historical_averaging:
            history = networks[_history(phase)]
            assert isinstance(history, History)
            history.add_gradients(network, self.historical_averaging)

    def inspect(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """The largest singular value of each network's spectrally normalised weights."""
        largest = {}
        for name in (GENERATOR, DISCRIMINATOR):
            buffers = networks[name].named_buffers()
            values = [value for key, value in buffers if key.rpartition(".")[2] == "sv0"]
            if values:
                largest[f"singular_value_{name}"] = float(torch.cat(values).max())
        return largest

    def watch(self) -> Watch | None:
        """Ends the run when the discriminator wins for long; see `CollapseWatch`."""
        if self.collapse_kimg is None:
            return None
        least, even = self._loss.least, self._loss.even
        won = least + self.collapse_loss * (even - least)
        return CollapseWatch(won, even, self.collapse_kimg)

    @override
    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> GanGenerator:
        assert isinstance(network, GeneratorNetwork)
        return GanGenerator(network, class_names=class_names, sampler=sampler or None, card=card)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within this context no gradients of the parameters are computed, only those of inputs."""
    trains = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trains:
            parameter.requires_grad_(True)


def features(
    discriminator: nn.Module, images: Float[Tensor, "B C H W"], labels: Int64[Tensor, " B"]
) -> Float[Tensor, "B F"]:
    """The inputs of a discriminator's last layer, ``linear``, for images."""
    inputs: list[Tensor] = []
    layer = cast(nn.Module, discriminator.linear)
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].float()))
    try:
        discriminator(images, labels)
    finally:
        hook.remove()
    return inputs[0]


def _history(name: str) -> str:
    return f"history-{name}"


def _mean_loss(mean: Tensor, count: int, **parts: Tensor) -> Loss:
    """A mean as `Loss` wants it: summed over the images, and detached."""
    return Loss(
        total=mean * count,
        mean=mean.detach(),
        parts={name: value.detach() for name, value in parts.items()},
    )
