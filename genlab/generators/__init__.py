"""The unified generator interface and its families."""

from genlab.generators.autoregressive import AutoregressiveGenerator
from genlab.generators.base import FAMILIES, Batch, Generator, read_generator
from genlab.generators.diffusion import DiffusionGenerator

__all__ = [
    "FAMILIES",
    "AutoregressiveGenerator",
    "Batch",
    "DiffusionGenerator",
    "Generator",
    "read_generator",
]
