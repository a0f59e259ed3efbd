"""The contract of a training objective: networks, losses, and the model that comes out.

The loop knows nothing of it. A step runs the objective's phases one after another, and each phase
updates one network: a diffusion model has one phase, a GAN one for its generator and some for its
discriminator. What comes out is a generator, or a network that serves another purpose (a
classifier). An objective that can tell how good its network is on images that it was not trained on
names its scores.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab.errors import ConfigError, nearest
from genlab.registry import Registry
from genlab.training.loop.batches import DataMetadata


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of one micro-batch.

    Attributes:
        total: what is differentiated: a sum over the samples (the loop divides by the batch size).
        mean: what is logged, a mean over the samples, on any scale that is easy to read.
        parts: name -> more means to be logged.
    """

    total: Float[Tensor, ""]
    mean: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Float[Tensor, "B ..."], **parts: Float[Tensor, " B"]) -> "Loss":
        """From the losses of samples, or of all their elements, and from parts of them."""
        means = {name: part.detach().mean() for name, part in parts.items()}
        return cls(total=values.sum(), mean=values.detach().mean(), parts=means)


@runtime_checkable
class Product(Protocol):
    """What comes out of a run. Where it is a generator, previews are drawn with it."""

    def to(self, device: Any = None, dtype: Any = None) -> Any:
        """Move the product, or change what it computes in."""

    def save_pretrained(self, folder: Path) -> None:
        """Write it as a folder, model card included."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a run is ended before its last step.

    Attributes:
        problem: what is wrong, as the beginning of a sentence.
        cure: what to do about it.
        kimg: when it began, in thousands of images; checkpoints from before may be good.
    """

    problem: str
    cure: str
    kimg: float


@runtime_checkable
class Watch(Protocol):
    """Ends a run that fails; its state is saved with the run."""

    def __call__(self, kimg: float, means: Mapping[str, float]) -> Trouble | None:
        """Look at the means of a log line: (thousands of images, name -> mean)."""

    def state_dict(self) -> dict[str, Any]:
        """Its state in plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""


class Objective(ABC):
    """One family in training. Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        family: of what comes out.
        phases: the networks that a step updates, in order; a name may come twice. Networks that
            `build` makes beside them are saved with the run but not trained.
        main: the network that is averaged and that the product is made of.
        task: what the product does, as hubs tag it.
        usage: how to use it, for its model card (Markdown).
        scores: what `evaluate` gives -> how it is written (a format specification).
        higher_is_better: those of the scores of which that is true.
        num_initial_images: how many images `initialise` gets; 0 leaves it out.
        recuttable: whether a batch may be cut into other micro-batches during a run: no layer of
            the networks looks at more than one image, nor changes with each pass.
        starts_trained: whether training begins from a trained model: a preview is drawn before the
            first step, and the autoencoder of latents is the model's own.
    """

    family: ClassVar[str]
    main: ClassVar[str]
    task: ClassVar[str] = "image-generation"
    usage: ClassVar[str] = (
        "To draw samples:\n\n```\ngenlab sample PATH_TO_THIS_FOLDER --seeds 0-63 -o samples/\n```"
    )
    scores: ClassVar[Mapping[str, str]] = {}
    higher_is_better: ClassVar[frozenset[str]] = frozenset()
    num_initial_images: ClassVar[int] = 0
    recuttable: ClassVar[bool] = True
    starts_trained: ClassVar[bool] = False

    def to(self, device: torch.device) -> None:
        """Move what the objective itself holds to the device of the run, before it builds."""
        return

    @property
    @abstractmethod
    def phases(self) -> tuple[str, ...]:
        """The networks that a step updates, in this order; a constant of most classes."""

    @abstractmethod
    def build(self, network: Mapping[str, Any], data: DataMetadata) -> dict[str, nn.Module]:
        """Build the networks with fresh weights, drawn from torch's global generator.

        Args:
            network: ``name`` and the constructor's arguments.
            data: what fills in the arguments that are left out.

        Raises:
            ConfigError: an argument contradicts the data.
        """

    def initialise(
        self,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
    ) -> None:
        """Fit the first weights to data, once before the first step; draws nothing at random.

        Args:
            networks: as `build` made them, in training.
            images: the first of the run, in [-1, 1], the same ones in every process.
            labels: their classes; all -1 where the data have none.
        """
        return

    @abstractmethod
    def compute_loss(
        self,
        phase: str,
        networks: Mapping[str, nn.Module],
        images: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, " B"],
        generator: torch.Generator,
    ) -> Loss:
        """The loss of one micro-batch.

        Args:
            phase: which of `phases` this is.
            networks: as `build` made them, perhaps wrapped for data-parallel training.
            images: in [-1, 1].
            labels: classes; all -1 where the data have none.
            generator: where every random number comes from.
        """

    def rows(self, phase: int, count: int) -> slice:
        """The images of a micro-batch that a phase looks at; by default all of them.

        Args:
            phase: number within `phases`.
            count: images in the micro-batch.
        """
        return slice(None)

    @torch.no_grad()
    def adjust_gradients(self, phase: str, networks: Mapping[str, nn.Module]) -> None:
        """Change the gradients of a whole batch before the optimizer takes them, in place.

        Args:
            phase: the network that is updated.
            networks: as `build` made them.
        """
        return

    def inspect(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """More values for a log line, read off the networks as they are now."""
        return {}

    def watch(self) -> Watch | None:
        """A watch that ends a run whose training has failed, or None."""
        return None

    @abstractmethod
    def product(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> Product:
        """The model that a trained main network becomes.

        Args:
            network: with its final weights.
            class_names: one for each class, or None.
            sampler: how a generator samples by default; empty for anything else.
            card: text of the model card.
        """

    def card_rows(self) -> dict[str, str]:
        """More rows for the model card's table: name -> text, known once the networks are built."""
        return {}

    def finish(self, network: nn.Module) -> nn.Module:
        """The main network as it is exported, with its final weights; by default as it is."""
        return network

    def evaluate(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> dict[str, float]:
        """Evaluate the main network on images that it was not trained on; draws nothing at random.

        Args:
            network: in evaluation mode.
            batches: images (B, C, H, W) in [-1, 1] and labels (B,), on the network's device.

        Returns:
            A value for each of `scores`.
        """
        return {}


OBJECTIVES: Registry[type[Objective]] = Registry(
    "genlab.objectives",
    {
        "classifier": "genlab.training.objectives.classification:ClassifierObjective",
        "diffusion": "genlab.training.objectives.diffusion:DiffusionObjective",
        "noisy-classifier": (
            "genlab.training.objectives.noisy_classification:NoisyClassifierObjective"
        ),
        "gan": "genlab.training.objectives.gan.objective:GanObjective",
        "likelihood": "genlab.training.objectives.likelihood:LikelihoodObjective",
    },
)


def build_objective(config: Mapping[str, Any]) -> Objective:
    """Build the objective that a configuration's ``objective`` names."""
    options = dict(config)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"objective.name is missing; known: {', '.join(OBJECTIVES)}")
    objective: Objective = OBJECTIVES.build(name, **options)
    return objective


NETWORKS: Registry[type[nn.Module]] = Registry(
    "genlab.networks",
    {
        "adm-classifier": "genlab.networks.noisy_classifier:ADMClassifier",
        "adm-unet": "genlab.networks.adm_unet:ADMUNet",
        "biggan-deep-discriminator": "genlab.networks.biggan_deep:BigGANDeepDiscriminator",
        "biggan-deep-generator": "genlab.networks.biggan_deep:BigGANDeepGenerator",
        "biggan-discriminator": "genlab.networks.biggan:BigGANDiscriminator",
        "biggan-generator": "genlab.networks.biggan:BigGANGenerator",
        "classifier-cnn": "genlab.networks.classifier_cnn:ClassifierCNN",
        "conditional-discriminator": "genlab.networks.conditional_gan:ConditionalDiscriminator",
        "conditional-generator": "genlab.networks.conditional_gan:ConditionalGenerator",
        "song-unet": "genlab.networks.song_unet:SongUNet",
        "dhariwal-unet": "genlab.networks.dhariwal_unet:DhariwalUNet",
        "dit": "genlab.networks.dit:DiT",
        "gated-pixelcnn": "genlab.networks.gated_pixelcnn:GatedPixelCNN",
        "pixelcnn++": "genlab.networks.pixelcnnpp:PixelCNNPP",
        **{  # the published sizes
            f"dit-{size.lower()}{patch}": f"genlab.networks.dit:DiT_{size}_{patch}"
            for size in ("S", "B", "L", "XL")
            for patch in (2, 4, 8)
        },
    },
)


def build_network(
    network: Mapping[str, Any],
    from_data: Mapping[str, Any],
    settings: str = "",
    section: str = "network",
) -> nn.Module:
    """Build a registered network with fresh weights.

    Args:
        network: ``name`` and the constructor's arguments.
        from_data: arguments that follow from the data and the objective; they may be left out of
            ``network`` but not contradicted.
        settings: more settings that they follow from, for the message.
        section: of the configuration that ``network`` stands in, for the message.

    Raises:
        ConfigError: an argument is unknown or contradicts the data.
    """
    parameters = network_parameters(network, section)
    options = dict(network)
    name = options.pop("name")
    for key in from_data:
        if key not in parameters:
            raise ConfigError(
                f"the network {name!r} does not suit this objective: it takes no {key}; choose "
                f"another {section}.name"
            )
    for key, value in from_data.items():
        if options.setdefault(key, value) != value:
            raise ConfigError(
                f"{section}.{key} is {options[key]} but the data and the objective make it "
                f"{value}; leave it out, or "
                f"change data.image_size, data.channels, data.labels{settings}"
            )
    return NETWORKS[name](**options)


def network_parameters(network: Mapping[str, Any], section: str = "network") -> list[str]:
    """The constructor's parameters of a registered network; see `build_network`.

    Raises:
        ConfigError: the name is missing, or an argument is unknown.
    """
    name = network.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{section}.name is missing; {nearest('', NETWORKS)}")
    parameters = [key for key in inspect.signature(NETWORKS[name]).parameters if key != "self"]
    for key in network:
        if key not in ("name", *parameters):
            raise ConfigError(
                f"the network {name!r} has no argument {key!r}; {nearest(str(key), parameters)}"
            )
    return parameters
