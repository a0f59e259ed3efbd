"""Modules that have moved are still found by their old names, with a warning.

``genlab.checkpoints.dit`` is ``genlab.checkpoints.readers.dit`` now: where a package has no module
of a name, the rooms that were made out of it are searched.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

ROOMS = {
    "genlab.checkpoints": ("readers", "pickles", "zoo"),
    "genlab.data": ("sources", "check", "augment", "writing"),
    "genlab.finetuning": ("class_tables", "methods"),
    "genlab.generators": ("analysis", "genlab.saving", "genlab.runs"),
    "genlab.networks": ("layers", "kernels"),
    "genlab.training": ("objectives", "loop", "recommend"),
}
"""Package -> the rooms that some of its modules are in: its own, or others by their whole name."""


def keep_old_names() -> None:
    """Let old names be imported; asked last, so that nothing else waits for it."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module by its old name, or None; ``path`` is any iterable."""
        package, _, name = fullname.rpartition(".")
        for room in ROOMS.get(package, ()):
            place = room if room.startswith("genlab.") else f"{package}.{room}"
            if find_spec(f"{place}.{name}") is not None:
                return ModuleSpec(fullname, _Alias(f"{place}.{name}"))
        return None


class _Alias(Loader):
    """Gives the module of another name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, so that its classes are the same by both names."""
        warnings.warn(f"{spec.name} is {self.name} now", DeprecationWarning, stacklevel=2)
        module = import_module(self.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it was; it has been executed."""
        module.__spec__ = self._spec
