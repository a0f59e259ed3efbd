"""``GenLabPipeline`` under diffusers' own name, so that its loader finds the class.

diffusers' ``DiffusionPipeline.from_pretrained`` looks the class of a folder up in the module
``diffusers``. ``import genlab`` imports no diffusers, so the name is added once it is imported,
before or after; our class is imported only when the name is asked for.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

DIFFUSERS = "diffusers"
PIPELINE = "GenLabPipeline"


def show_pipeline() -> None:
    """Let diffusers have our pipeline class, now or once it is imported."""
    if DIFFUSERS in sys.modules:
        _add_name(sys.modules[DIFFUSERS])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds diffusers where the others find it, and adds the name after its import."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of diffusers, whose loader adds the name; ``path`` is any iterable."""
        if fullname != DIFFUSERS or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _add_name(sys.modules[DIFFUSERS])  # which has put another module in its place

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]  # of this one loader
        return spec


def _add_name(module: ModuleType) -> None:
    kind = type(module)

    class WithGenLab(kind):  # type: ignore[misc, valid-type]  # diffusers' lazy module, or a plain one
        def __getattr__(self, name: str) -> object:
            if name == PIPELINE:
                return getattr(import_module("genlab"), PIPELINE)
            own = getattr(kind, "__getattr__", None)
            if own is None:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            return own(self, name)

    if kind.__name__ != WithGenLab.__name__:
        module.__class__ = WithGenLab
