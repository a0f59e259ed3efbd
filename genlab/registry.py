"""Names as API: one registry for each kind of plug-in, one door for built-ins and third parties.

A built-in stands in a table as ``"heun": "genlab.samplers.solvers:Heun"`` and is wrapped as an
entry point, so that it takes the very path of ``[project.entry-points."genlab.solvers"]`` in
somebody else's package and is imported only when asked for by name.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from genlab.errors import ConfigError, UnknownNameError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of plug-in.

    Args:
        group: the entry-point group, for instance ``"genlab.solvers"``.
        builtins: name -> ``"module:attribute"``.
        kind: what messages call one entry; by default the last word of the group without its plural
            s.
    """

    def __init__(self, group: str, builtins: Mapping[str, str], kind: str | None = None) -> None:
        self.group = group
        self.kind = kind or group.rpartition(".")[2].removesuffix("s")
        self._entries: dict[str, EntryPoint] = {
            name: EntryPoint(name, target, group) for name, target in builtins.items()
        }
        self._builtins = tuple(builtins)
        self._loaded: dict[str, T] = {}
        self._scanned = False

    def _scan(self) -> dict[str, EntryPoint]:
        if not self._scanned:
            self._scanned = True
            for entry in entry_points(group=self.group):
                known = self._entries.setdefault(entry.name, entry)
                if known.value != entry.value:
                    raise ConfigError(
                        f"two packages register the {self.kind} {entry.name!r}: {known.value} and "
                        f"{entry.value}; uninstall one of them"
                    )
        return self._entries

    def register(self, name: str) -> Callable[[T], T]:
        """Register a plug-in from a running program: ``@SOLVERS.register("mine")``."""

        def add(value: T) -> T:
            if name in self:
                raise ConfigError(
                    f"the {self.kind} {name!r} is already registered; choose another name"
                )
            self._loaded[name] = value
            return value

        return add

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._scan()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._scan(), *self._loaded}))

    def __len__(self) -> int:
        return len({*self._scan(), *self._loaded})

    def in_order(self) -> list[str]:
        """All names: the built-in ones as their table has them, then the others sorted."""
        return [*self._builtins, *(name for name in self if name not in self._builtins)]

    def entry_point(self, name: str) -> EntryPoint | None:
        """Where ``name`` is defined, for who wants to know without importing it.

        Returns:
            None where it is loaded already, or registered from a running program.
        """
        return None if name in self._loaded else self._scan().get(name)

    def __getitem__(self, name: str) -> T:
        """Load what is registered under ``name``; an unknown name lists the known ones."""
        if name not in self._loaded:
            entry = self._scan().get(name)
            if entry is None:
                raise UnknownNameError(f"there is no {self.kind} {name!r}; {nearest(name, self)}")
            self._loaded[name] = entry.load()
        return self._loaded[name]

    def build(self, name: str, /, **options: Any) -> Any:
        """Call the plug-in ``name`` with ``options``, which are checked against its fields."""
        target: Any = self[name]
        if dataclasses.is_dataclass(target):
            fields = [f.name for f in dataclasses.fields(target) if f.init]
            for key in options:
                if key not in fields:
                    raise ConfigError(
                        f"the {self.kind} {name!r} has no option {key!r}; {nearest(key, fields)}"
                    )
            hints = get_type_hints(getattr(target, "__init__"))  # noqa: B009  # mypy objects to target.__init__
            options = {
                key: _typed(value, hints.get(key), f"option {key!r} of the {self.kind} {name!r}")
                for key, value in options.items()
            }
        try:
            return target(**options)
        except TypeError as error:  # a required option is missing
            raise ConfigError(f"the {self.kind} {name!r} cannot be built: {error}") from error


def _typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the plain type that ``hint`` asks for; text from a command line may be a number.

    Hints other than int, float, bool, str and their optional forms are left to the class itself.

    Raises:
        ConfigError: it is of another type.
    """
    if get_origin(hint) in (Union, UnionType):
        choices = get_args(hint)
        if value is None and NoneType in choices:
            return None
        plain = [choice for choice in choices if choice is not NoneType]
        return _typed(value, plain[0], where) if len(plain) == 1 else value
    if hint not in (int, float, bool, str) or type(value) is hint:
        return value
    if hint in (int, float) and isinstance(value, int | float | str) and type(value) is not bool:
        with suppress(ValueError, OverflowError):
            if hint(value) == value or isinstance(value, str):
                return hint(value)
    raise ConfigError(f"{where} must be {_WORDS[hint]}, got {value!r}")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
