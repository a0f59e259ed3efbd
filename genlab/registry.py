"""Names as API: one registry for each kind of plug-in, one door for built-ins and third parties.

A built-in stands in a table as ``"heun": "genlab.samplers.solvers:Heun"`` and is wrapped as an
entry point, so that it takes the very path of ``[project.entry-points."genlab.solvers"]`` in
somebody else's package and is imported only when asked for by name.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from genlab.errors import ConfigError, GenLabError, UnknownNameError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of plug-in.

    Args:
        group: the entry-point group, for instance ``"genlab.solvers"``.
        builtins: name -> ``"module:attribute"``.
        kind: what messages call one entry; by default the last word of the group without its plural
            s.
        aliases: other names by which people know a built-in -> its name here; they are not listed.
    """

    def __init__(
        self,
        group: str,
        builtins: Mapping[str, str],
        kind: str | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.group = group
        self.aliases = dict(aliases or {})
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
        return name in self._loaded or name in self._scan() or name in self.aliases

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
        """Load what is registered under ``name``.

        Raises:
            UnknownNameError: nothing is; lists the known names.
            ConfigError: it cannot be imported; names the package that registered it.
        """
        name = self.aliases.get(name, name)
        if name not in self._loaded:
            entry = self._scan().get(name)
            if entry is None:
                raise UnknownNameError(f"there is no {self.kind} {name!r}; {nearest(name, self)}")
            try:
                self._loaded[name] = entry.load()
            except GenLabError:
                raise
            except Exception as error:  # a plug-in may fail in any way while it is imported
                package = f" of the package {entry.dist.name}" if entry.dist else ""
                raise ConfigError(
                    f"the {self.kind} {name!r}{package} ({entry.value}) cannot be loaded: "
                    f"{type(error).__name__}: {error}"
                ) from error
        return self._loaded[name]

    def build(self, name: str, /, **options: Any) -> Any:
        """Call the plug-in ``name`` with ``options``, which are checked where it is a dataclass.

        Raises:
            UnknownNameError: nothing is registered under this name.
            ConfigError: an option is unknown, missing, of the wrong type or out of range.
        """
        from genlab import schema  # OmegaConf is not needed to list names

        target: Any = self[name]
        if isinstance(target, type) and dataclasses.is_dataclass(target):
            return schema.make(target, options, f"the {self.kind} {name!r}")
        try:
            return target(**options)
        except TypeError as error:  # an option is unknown or missing
            raise ConfigError(f"the {self.kind} {name!r} cannot be built: {error}") from error

    def build_named(self, options: Mapping[str, Any]) -> Any:
        """Build from one mapping, whose ``name`` says what the other keys are options of.

        Raises:
            UnknownNameError: nothing is registered under this name.
            ConfigError: there is no name, or an option is wrong.
        """
        name = options.get("name")
        if not isinstance(name, str):
            known = ", ".join(self)
            raise ConfigError(f"a {self.kind} needs a name, one of {known}; got {dict(options)}")
        return self.build(name, **{key: v for key, v in options.items() if key != "name"})

    def entry_of(self, built: Any) -> dict[str, Any]:
        """What `build_named` makes an object from: its ``name``, and what is not its default.

        Raises:
            UnknownNameError: its class is not registered.
        """
        for name in [*self._loaded, *self]:
            if self[name] is type(built):
                break
        else:
            raise UnknownNameError(f"{built!r} is registered as no {self.kind}; register its class")
        options = {each.name: getattr(built, each.name) for each in dataclasses.fields(built)}
        defaults = {
            each.name: each.default
            if each.default_factory is dataclasses.MISSING
            else each.default_factory()
            for each in dataclasses.fields(built)
        }
        changed = {key: value for key, value in options.items() if value != defaults[key]}
        return {"name": name, **changed}
