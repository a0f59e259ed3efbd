"""``GenLabPipeline`` under diffusers' own name, so that its loader finds the class.

diffusers' ``DiffusionPipeline.from_pretrained`` looks the class of a folder up in the module
``diffusers``. ``import genlab`` imports no diffusers, so the name is added once it is imported,
before or after; our class is imported only when the name is asked for.
"""

from importlib import import_module
from types import ModuleType

from genlab.after_import import after_import

DIFFUSERS = "diffusers"
PIPELINE = "GenLabPipeline"


def show_pipeline() -> None:
    """Let diffusers have our pipeline class, now or once it is imported."""
    after_import(DIFFUSERS, _add_name)


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
