"""The unified generator interface and its families, each imported on first use."""

from typing import TYPE_CHECKING

from genlab.lazy import attach

if TYPE_CHECKING:
    from genlab.generators.autoregressive import AutoregressiveGenerator
    from genlab.generators.base import Batch, Generator
    from genlab.generators.diffusion import DiffusionGenerator
    from genlab.generators.families import FAMILIES, read_generator
    from genlab.generators.gan import GanGenerator

__all__ = [
    "FAMILIES",
    "AutoregressiveGenerator",
    "Batch",
    "DiffusionGenerator",
    "GanGenerator",
    "Generator",
    "read_generator",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "FAMILIES": "genlab.generators.families",
        "AutoregressiveGenerator": "genlab.generators.autoregressive",
        "Batch": "genlab.generators.base",
        "DiffusionGenerator": "genlab.generators.diffusion",
        "GanGenerator": "genlab.generators.gan",
        "Generator": "genlab.generators.base",
        "read_generator": "genlab.generators.families",
    },
)
