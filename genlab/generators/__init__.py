"""The unified generator interface and its families."""

from genlab.generators.base import Batch, Generator
from genlab.generators.diffusion import DiffusionGenerator

__all__ = ["Batch", "DiffusionGenerator", "Generator"]
