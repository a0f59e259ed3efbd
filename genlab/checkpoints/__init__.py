"""Readers of official files, GenLab's own format, the zoo and the bundled models.

The public names are looked up on first use, so that the zoo can be listed without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from genlab.lazy import attach
from genlab.samplers.parts import loads

if TYPE_CHECKING:
    from genlab.checkpoints.conversion import convert
    from genlab.checkpoints.loading import load
    from genlab.checkpoints.readers.base import READERS, Reader

__all__ = ["READERS", "Reader", "convert", "load"]

_HOMES = {
    "READERS": "genlab.checkpoints.readers.base",
    "Reader": "genlab.checkpoints.readers.base",
    "convert": "genlab.checkpoints.conversion",
    "load": "genlab.checkpoints.loading",
}


@loads("classifier")
def _classifier(source: str) -> Any:
    return import_module("genlab.checkpoints.classifiers").load_classifier(source)


@loads("discriminator")
def _discriminator(source: str) -> Any:
    return import_module("genlab.checkpoints.discriminators").load_discriminator(source)


@loads("generator")
def _generator(source: str) -> Any:
    return import_module("genlab.checkpoints.loading").load(source)


__getattr__, __dir__ = attach(__name__, _HOMES)
