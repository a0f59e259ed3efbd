"""Do something once another package has been imported, by whomever, and not import it for that."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def after_import(name: str, action: Action) -> None:
    """Call ``action`` with a module: now if it has been imported, else after its import.

    Args:
        name: of the module.
        action: called once.
    """
    if name in sys.modules:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, action))


class _Finder(MetaPathFinder):
    """Finds a module where the others find it, and calls the action after its import."""

    def __init__(self, name: str, action: Action) -> None:
        self.name, self._action = name, action
        self._asking = False

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec, whose loader calls the action; ``path`` is any iterable."""
        if fullname != self.name or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self._action(sys.modules[self.name])  # which may have put another module in its place

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]  # of this one loader
        return spec
