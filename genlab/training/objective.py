"""What is specific to a family of models in training: networks, losses, the resulting generator.

The loop knows nothing of it. A step runs the objective's phases one after another, and each phase
updates one network: a diffusion model has one phase, a GAN has two.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.generators.base import Generator
from genlab.registry import Registry
from genlab.training.batches import DataFacts


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of one micro-batch.

    Attributes:
        total: what is differentiated: a sum over the samples (the loop divides by the batch size).
        mean: what is logged, a mean over the samples, on any scale that is easy to read.
    """

    total: Float[Tensor, ""]
    mean: Float[Tensor, ""]


class Objective(ABC):
    """One family in training. Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        family: of the generator that comes out.
        phases: the networks that a step updates, in order; a name may come twice.
        main: the network that is averaged and that the generator samples with.
    """

    family: ClassVar[str]
    phases: ClassVar[tuple[str, ...]]
    main: ClassVar[str]

    @abstractmethod
    def build(self, network: Mapping[str, Any], data: DataFacts) -> dict[str, nn.Module]:
        """Build the networks with fresh weights, drawn from torch's global generator.

        Args:
            network: ``name`` and the constructor's arguments.
            data: what fills in the arguments that are left out.

        Raises:
            ConfigError: an argument contradicts the data.
        """

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

    @abstractmethod
    def generator(
        self,
        network: nn.Module,
        class_names: tuple[str, ...] | None,
        sampler: Mapping[str, Any],
        card: str | None = None,
    ) -> Generator:
        """The generator around the main network."""


OBJECTIVES: Registry[type[Objective]] = Registry(
    "genlab.objectives", {"diffusion": "genlab.training.diffusion:DiffusionObjective"}
)


def build_objective(config: Mapping[str, Any]) -> Objective:
    """The objective that a configuration's ``objective`` names."""
    options = dict(config)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"objective.name is missing; known: {', '.join(OBJECTIVES)}")
    objective: Objective = OBJECTIVES.build(name, **options)
    return objective


NETWORKS: Registry[type[nn.Module]] = Registry(
    "genlab.networks",
    {
        "song-unet": "genlab.networks.song_unet:SongUNet",
        "dhariwal-unet": "genlab.networks.dhariwal_unet:DhariwalUNet",
    },
)
