"""The objective of a fine-tuning run: its family's, around a base that a method has prepared."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from genlab import compute
from genlab.data.class_names import same_names
from genlab.errors import ConfigError
from genlab.finetuning.adapters.facts import AdapterMetadata
from genlab.finetuning.class_tables.classes import with_classes
from genlab.finetuning.class_tables.origins import ClassOrigin, class_origins
from genlab.finetuning.class_tables.rebuilding import own_tensors, rebuild
from genlab.finetuning.class_tables.resolution import with_resolution
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.families import family_objective
from genlab.finetuning.forgetting import Forgetting
from genlab.finetuning.gan.objective import GanFinetuning
from genlab.finetuning.methods.base import METHODS, Method
from genlab.finetuning.products import product_of
from genlab.generators.autoencoder import Autoencoder
from genlab.generators.base import Generator
from genlab.generators.gan import GanGenerator
from genlab.generators.latents import size_of
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Loss, Objective, Product, Watch

MAX_NAMED = 8
"""Classes that a sentence names one by one."""


class FinetuneObjective(Objective):
    """Train what a method chooses of a base, by the loss that the base was trained with.

    The base is in memory once: the network in training and the one for the averages are built
    around its tensors, and have copies only of what trains.

    Args:
        config: of the run.
        base: what it names, as loaded; it is not changed, but moved to the run's device.

    Attributes:
        base: as the run begins with it, at the resolution wanted, with its own classes.
        method: prepares the network.
        start: the base with the classes of the data; known once a network is built.
        origins: where new classes begin; empty where the classes are the base's.

    Raises:
        ConfigError: an option is wrong, or the base cannot be brought to the resolution.
    """

    starts_trained: ClassVar[bool] = True
    usage: ClassVar[str] = (
        "To draw samples:\n\n```\ngenlab sample PATH_TO_THIS_FOLDER --seeds 0-63 -o samples/\n```"
    )

    def __init__(self, config: FinetuneConfig, base: Generator) -> None:
        size = config.resolution
        changes = size is not None and size != base.image_shape[1]
        self.config = config
        self.base = with_resolution(base, size) if changes and size is not None else base
        self.method: Method = METHODS.build_named(config.method)
        self.start: Generator = self.base
        self.origins: tuple[ClassOrigin, ...] = ()
        self.notes: list[str] = []
        self.forgetting = Forgetting(config.forget, self.base) if config.forget.classes else None
        self._labels: Tensor | None = None
        self._known: DataMetadata | None = None
        self._trained = self._total = 0
        self._adopt(family_objective(self.base, config.objective))

    def _adopt(self, inner: Objective) -> None:
        """Take over the class attributes of a family's objective."""
        self.inner = inner
        for name in ("family", "main", "task", "scores", "higher_is_better", "recuttable"):
            setattr(self, name, getattr(inner, name))

    @property
    @override
    def phases(self) -> tuple[str, ...]:
        return self.inner.phases

    def to(self, device: torch.device) -> None:
        """Move the base, laid out as networks in training are; see `Objective.to`."""
        self.base.to(device)
        compute.choose(device).prepare_training(self.base.network)

    def build(self, network: Mapping[str, Any], data: DataMetadata) -> dict[str, nn.Module]:
        """The base's network with the data's classes, prepared by the method, and a GAN's others.

        Raises:
            ConfigError: the images are not the base's kind, the classes are not as many as wanted,
                or the method changes nothing.
            LabelError: new classes cannot begin as wanted.
        """
        if data != self._known:
            self._check_images(data)
            self._begin(data)
            self._known = data
        plain: Any = self.start.network
        built = rebuild(plain)
        own_tensors(built, self.method.prepare(built))
        self.notes = self.method.notes(built)
        sizes = {name: p.numel() for name, p in built.named_parameters()}
        self._total = sum(sizes.values())
        self._trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
        beside: dict[str, nn.Module] = {}
        if isinstance(self.inner, GanFinetuning):
            assert isinstance(self.base, GanGenerator)
            beside = self.inner.beside(built, self.base, self.origins, data)
        return {self.main: built, **beside}

    def _begin(self, data: DataMetadata) -> None:
        """Give the base the classes of the data."""
        names, initial = self._names(data), self.config.classes.initial
        self.start, self.origins = self.base, ()
        if self.forgetting is not None:
            self._labels = self.forgetting.data_labels(data, names)
            return
        # Whoever says where classes begin wants them to, also where they seem to be the base's.
        if initial != "mean" or not _same_classes(self.base, data.num_classes, names):
            classes: Sequence[str] | int = data.num_classes if names is None else names
            self.origins = class_origins(self.base, classes, initial, seed=self.config.seed)
            self.start = with_classes(self.base, classes, initial=self.origins)
        self._adopt(family_objective(self.start, self.config.objective))

    def _names(self, data: DataMetadata) -> tuple[str, ...] | None:
        """Names of the data's classes; None where they have none.

        Raises:
            ConfigError: there are not as many names, or classes, as wanted.
        """
        class_names, num_classes = self.config.class_names, self.config.classes.number
        names = data.class_names if class_names is None else tuple(class_names)
        where, count = Path(self.config.data.path).name, data.num_classes
        if names is not None and len(names) != count:
            raise ConfigError(
                f"class_names holds {len(names)} names, and {where} has {count} classes; give one "
                "for each"
            )
        if num_classes is not None and num_classes != count:
            listed = "" if names is None else f" ({_listed(names)})"
            raise ConfigError(
                f"{num_classes} classes are wanted, and {where} has {count}{listed}; leave "
                "--num-classes (classes.number) out, or sort the images into other folders"
            )
        return names

    def _check_images(self, data: DataMetadata) -> None:
        config, base = self.config, self.base
        autoencoder: Autoencoder | None = getattr(base, "autoencoder", None)
        if base.draws_latents:
            raise ConfigError(
                f"these are latents: {config.base} draws {size_of(base)} and has no autoencoder; "
                "attach the one that it was trained with, and fine-tune what that gives: genlab "
                f"convert {config.base} -o FOLDER --autoencoder AUTOENCODER"
            )
        if autoencoder is None and data.autoencoder is not None:
            raise ConfigError(
                f"{config.data.path} holds latents, and {config.base} works on images; give the "
                "images themselves"
            )
        if autoencoder is not None:
            if data.autoencoder is None:
                raise ConfigError(
                    f"{config.base} works on latents; encode the images once with 'genlab data "
                    f"encode {config.data.path} --autoencoder AUTOENCODER -o latents/', its own "
                    "autoencoder, and give that folder as the data"
                )
            if data.autoencoder != autoencoder.sha256():
                raise ConfigError(
                    f"the latents of {config.data.path} were made by another autoencoder than that "
                    f"of {config.base}; encode the images with its own"
                )
        shape = state_shape(base)
        if data.image_shape != shape:
            noun = "latents" if data.autoencoder else "images"
            raise ConfigError(
                f"the {noun} of {config.data.path} are {describe_shape(data.image_shape)}, and "
                f"{config.base} works on {describe_shape(shape)}; bring them to that with "
                "data.fit=crop and data.channels, or encode them anew"
            )

    @override
    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        if self.forgetting is not None and self._labels is not None:
            self._labels = self._labels.to(labels.device)
            mine = self._labels[labels]
            return self.forgetting.loss(self.inner, networks, images, mine, generator)
        return self.inner.compute_loss(phase, networks, images, labels, generator)

    @override
    def rows(self, phase: int, count: int) -> slice:
        return self.inner.rows(phase, count)

    @override
    def adjust_gradients(self, phase: str, networks: Mapping[str, nn.Module]) -> None:
        self.inner.adjust_gradients(phase, networks)

    @override
    def inspect(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        return self.inner.inspect(networks)

    @override
    def watch(self) -> Watch | None:
        return self.inner.watch()

    @override
    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        return self.inner.evaluate(network, batches)

    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> Product:
        """The base around another network: its preconditioning, autoencoder and sampler.

        Args:
            network: of `build`, or merged.
            class_names: one for each class; None keeps the base's where the classes are its own.
            sampler: what is laid over the base's own.
            card: text of the model card.
        """
        named = self.start.num_classes and self.forgetting is None
        return product_of(
            self.start,
            network,
            class_names=class_names if named else None,
            has_null_class=self._has_null_class(),
            sampler=sampler,
            card=card,
        )

    def _has_null_class(self) -> bool | None:
        """True where the run trains one; None is as of the base."""
        return True if getattr(self.inner, "label_dropout", 0.0) > 0 else None

    def finish(self, network: nn.Module) -> nn.Module:
        """Merge what the method added into weights of its own; see `Objective.finish`.

        Raises:
            ConfigError: it cannot be merged.
        """
        return self.method.merge(copy.deepcopy(network))

    @override
    def card_rows(self) -> dict[str, str]:
        share = self._trained / max(self._total, 1)
        ema = self.config.ema
        rows = {
            "Base": Path(self.config.base).name,
            "Method": describe_method(self.method),
            "Trained": f"{self._trained:,} of {self._total:,} parameters ({share:.2%})",
        }
        if self.origins:
            rows["New classes"] = describe_origins(self.origins)
        if self.forgetting is not None:
            rows["Forgotten"] = self.forgetting.describe()
        if ema.rampup_ratio is not None:
            rows["Half-life of the average"] = (
                f"{ema.rampup_ratio:.0%} of the images seen, at most {ema.halflife_kimg:g} thousand"
            )
        return {**rows, **self.variance()}

    def variance(self) -> dict[str, str]:
        """Whether a learned variance is trained, in words; nothing of a base without one."""
        preconditioning = getattr(self.base, "preconditioning", None)
        if preconditioning is None or not preconditioning.variance.startswith("learned"):
            return {}
        loss: Any = getattr(self.inner, "loss", {})
        by_bound = loss.get("name") == "ddpm"
        trained = (
            "trained by the variational bound (lambda 0.001)"
            if by_bound and loss.get("kind") == "rescaled_mse"
            else "trained by the variational bound"
            if by_bound
            else f"not trained: the loss {loss.get('name')!r} has no term for it"
        )
        return {"Variance": trained}

    def adapter_metadata(
        self, base_sha256: str | None, conversion: Mapping[str, Any], images: int
    ) -> AdapterMetadata:
        """The metadata of the adapter.

        Args:
            base_sha256: of the base's weights.
            conversion: how the images were converted, in plain values.
            images: seen in training.
        """
        names = self._class_names()
        return AdapterMetadata(
            base=self.config.base,
            base_sha256=base_sha256,
            method=METHODS.entry_of(self.method),
            num_classes=self.start.num_classes,
            class_names=None if names is None else tuple(names),
            classes=self.origins,
            resolution=self.config.resolution,
            has_null_class=self._has_null_class() if self.start.num_classes else None,
            forget=None if self.forgetting is None else self.forgetting.to_json(),
            sampler=dict(self.config.sampler),
            images=conversion,
            trained_on_images=images,
        )

    def _class_names(self) -> list[str] | None:
        data = None if self.forgetting is not None else self._known
        names = None if data is None else self._names(data)
        if names is None:
            names = self.start.class_names
        return None if names is None else list(names)


def state_shape(base: Generator) -> tuple[int, int, int]:
    """(C, H, W) of what a network works on: images, or latents."""
    shape: tuple[int, int, int] = getattr(base, "state_shape", base.image_shape)
    return shape


def describe_shape(shape: Sequence[int]) -> str:
    """A shape (C, H, W) in words.

    >>> describe_shape((1, 28, 32))
    '32x28 grey'
    """
    channels, height, width = shape
    colour = {1: "grey", 3: "RGB"}.get(channels, f"of {channels} channels")
    return f"{width}x{height} {colour}"


def describe_method(method: Method) -> str:
    """A method with the options that are not its defaults, in words."""
    entry = METHODS.entry_of(method)
    options = [f"{key}={value}" for key, value in entry.items() if key != "name"]
    return " ".join([entry["name"], *options])


def describe_origins(origins: Sequence[ClassOrigin]) -> str:
    """Where new classes begin, in words; many that begin alike in one."""
    names = _listed([origin.name for origin in origins])
    begins = dict.fromkeys(origin.describe().partition(": ")[2] for origin in origins)
    if len(begins) == 1:
        return f"{names}: each {next(iter(begins))}"
    text = "; ".join(origin.describe() for origin in origins[:MAX_NAMED])
    return text + (f"; ... ({len(origins)})" if len(origins) > MAX_NAMED else "")


def _listed(names: Sequence[str]) -> str:
    more = f" ... ({len(names)})" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _same_classes(base: Generator, count: int, names: Sequence[str] | None) -> bool:
    """Whether data have the base's classes; names count where both have some."""
    if count != base.num_classes:
        return False
    if names is None or base.class_names is None:
        return True
    return same_names(names, base.class_names)
