"""The unified generator interface and its families."""

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
