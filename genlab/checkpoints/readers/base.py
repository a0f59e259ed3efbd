"""The contract of a checkpoint reader, and the registry of formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from genlab.generators.base import Generator
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.registry import Registry

Config = Mapping[str, Any]
Product = Generator | NoisyClassifier | GanDiscriminator
"""What official files hold: something that draws images, or what guides or judges it."""


@runtime_checkable
class Reader(Protocol):
    """Turns files of one official format into generators, and runs nothing that stands in them.

    A reader of folders has an attribute ``reads_folders = True`` and is asked about these only.

    A package adds a format with an entry point whose target is a class (or function) that is called
    without arguments and gives a reader::

        [project.entry-points."genlab.readers"]
        my-format = "my_package.reader:MyReader"
    """

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Whether this looks like the reader's format; reads at most the head of the file."""
        ...

    def read(self, source: Path, config: Config | None) -> Product:
        """Read the checkpoint.

        Args:
            source: the official file.
            config: the official constructor's keyword arguments, for files that do not carry them.

        Raises:
            CheckpointError: the file is damaged, of another format, or tries to run code.
            ConfigError: the config is needed and missing, or wrong.
        """
        ...


READERS: Registry[Any] = Registry(
    "genlab.readers",
    {
        "biggan-deep-hf": "genlab.checkpoints.readers.biggan_deep_hf:BigGANDeepHFReader",
        "biggan-pytorch": "genlab.checkpoints.readers.biggan:BigGANReader",
        "diffusers": "genlab.checkpoints.readers.diffusers_models:DiffusersReader",
        "dit": "genlab.checkpoints.readers.dit:DiTReader",
        "edm": "genlab.checkpoints.readers.edm:EDMReader",
        "guided-diffusion": "genlab.checkpoints.readers.guided_diffusion:GuidedDiffusionReader",
        "guided-diffusion-classifier": (
            "genlab.checkpoints.readers.guided_diffusion:GuidedDiffusionClassifierReader"
        ),
        "gated-pixelcnn": "genlab.checkpoints.readers.gated_pixelcnn:GatedPixelCNNReader",
        "pixelcnn++": "genlab.checkpoints.readers.pixelcnn:PixelCNNPPReader",
        "sit": "genlab.checkpoints.readers.dit:SiTReader",
    },
    kind="checkpoint format",
    builds=Reader,
)
