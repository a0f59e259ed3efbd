"""The unified generator interface and its families."""

from genlab.generators.autoregressive import AutoregressiveGenerator
from genlab.generators.base import FAMILIES, Batch, Generator, read_generator
from genlab.generators.diffusion import DiffusionGenerator
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
