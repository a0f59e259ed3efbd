"""Registries: one for each kind of plug-in, the same for built-ins and third parties.

A built-in stands in a table as ``"heun": "genlab.samplers.solvers:Heun"`` and is wrapped as an
entry point, so that it takes the very path of ``[project.entry-points."genlab.solvers"]`` in
another package and is imported only when asked for by name.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

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
        builds: what `build` must give, a class or ``"module:class"``; None lets anything pass.
    """

    def __init__(
        self,
        group: str,
        builtins: Mapping[str, str],
        kind: str | None = None,
        aliases: Mapping[str, str] | None = None,
        builds: type | str | None = None,
    ) -> None:
        self.group = group
        self._builds = builds
        self.aliases = dict(aliases or {})
        self.kind = kind or group.rpartition(".")[2].removesuffix("s")
        self._entries: dict[str, EntryPoint] = {
            name: EntryPoint(name, target, group) for name, target in builtins.items()
        }
        self._builtins = tuple(builtins)
        self._loaded: dict[str, T] = {}
        self._twice: dict[str, EntryPoint] = {}
        self._scanned = False

    def _scan(self) -> dict[str, EntryPoint]:
        if not self._scanned:
            self._scanned = True
            for entry in entry_points(group=self.group):
                if self._entries.setdefault(entry.name, entry).value != entry.value:
                    self._twice[entry.name] = entry
        return self._entries

    def _entry(self, name: str) -> EntryPoint | None:
        """Where ``name`` is defined.

        Raises:
            ConfigError: in two packages; other names stay usable.
        """
        entry, other = self._scan().get(name), self._twice.get(name)
        if entry is not None and other is not None:
            places = " and ".join(f"{_package(each)} ({each.value})" for each in (entry, other))
            raise ConfigError(
                f"two packages register the {self.kind} {name!r}: {places}; uninstall one of them"
            )
        return entry

    @property
    def builds(self) -> type | None:
        """What `build` must give; it is imported on first use."""
        if isinstance(self._builds, str):
            self._builds = EntryPoint("builds", self._builds, self.group).load()
        return cast("type | None", self._builds)

    def title(self, name: str) -> str:
        """What messages call an entry: ``the solver 'mine' of the package theirs``."""
        entry = self._entries.get(name)
        package = f" of the package {_package(entry)}" if entry and entry.dist else ""
        return f"the {self.kind} {name!r}{package}"

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

        Raises:
            ConfigError: two packages register it.
        """
        return None if name in self._loaded else self._entry(name)

    def place(self, name: str) -> str | None:
        """``module:attribute`` of ``name``, without importing it; None where no table has it."""
        entry = self._scan().get(name)
        return None if entry is None else entry.value

    def package(self, name: str) -> str | None:
        """The package that a plug-in comes from; None for a built-in."""
        entry = self._scan().get(name)
        return None if entry is None or entry.dist is None else _package(entry)

    def __getitem__(self, name: str) -> T:
        """Load what is registered under ``name``.

        Raises:
            UnknownNameError: nothing is; lists the known names.
            ConfigError: it cannot be imported, or two packages register it; names them.
        """
        name = self.aliases.get(name, name)
        if name not in self._loaded:
            entry = self._entry(name)
            if entry is None:
                raise UnknownNameError(f"there is no {self.kind} {name!r}; {nearest(name, self)}")
            try:
                self._loaded[name] = entry.load()
            except GenLabError:
                raise
            except (Exception, SystemExit) as error:  # a plug-in may fail in any way on import
                raise ConfigError(
                    f"{self.title(name)} ({entry.value}) cannot be loaded: "
                    f"{type(error).__name__}: {error}"
                ) from error
        return self._loaded[name]

    def build(self, name: str, /, **options: Any) -> Any:
        """Call the plug-in ``name`` with ``options``, which are checked where it is a dataclass.

        Raises:
            UnknownNameError: nothing is registered under this name.
            ConfigError: see `build_named`.
        """
        return self._build(name, options)

    def _build(self, name: str, options: Mapping[str, Any], place: str = "") -> Any:
        """Build it; messages say where in a configuration the options stand.

        Raises:
            UnknownNameError: nothing is registered under this name.
            ConfigError: an option is unknown, missing, of the wrong type or out of range; or the
                plug-in builds something else than its kind must be.
        """
        from genlab import schema  # OmegaConf is not needed to list names

        target: Any = self[name]
        title = self.title(name)
        hint = f"; it must build a {class_path(self.builds)}" if self.builds else ""
        if inspect.isabstract(target):
            missing = ", ".join(sorted(target.__abstractmethods__))
            raise ConfigError(f"{title} cannot be built: {class_path(target)} lacks {missing}")
        if isinstance(target, type) and dataclasses.is_dataclass(target):
            built: Any = schema.make(target, options, title, place)
        else:
            try:
                built = target(**options)
            except TypeError as error:  # an option is unknown or missing, or it cannot be called
                raise ConfigError(f"{title} cannot be built: {error}{hint}") from error
        if self.builds is not None and not isinstance(built, self.builds):
            raise ConfigError(f"{title} builds a {class_path(type(built))}{hint}")
        return built

    def build_all(self) -> dict[str, Any]:
        """Name -> what is built without options; a broken plug-in is left out with a warning."""
        built = {}
        for name in self:
            try:
                built[name] = self.build(name)
            except GenLabError as error:
                leave_out(error)
        return built

    def build_named(self, options: Mapping[str, Any], place: str = "") -> Any:
        """Build from one mapping, whose ``name`` says what the other keys are options of.

        Args:
            options: the mapping.
            place: the key of the mapping in a configuration, for messages.

        Raises:
            UnknownNameError: nothing is registered under this name.
            ConfigError: there is no name, or an option is wrong.
        """
        name = options.get("name")
        if not isinstance(name, str):
            names = ", ".join(self)
            raise ConfigError(f"a {self.kind} needs a name, one of {names}; got {dict(options)}")
        return self._build(name, {k: v for k, v in options.items() if k != "name"}, place)

    def entry_of(self, built: Any) -> dict[str, Any]:
        """What `build_named` makes an object from: its ``name``, and what is not its default.

        Raises:
            UnknownNameError: its class is not registered.
        """
        place = f"{type(built).__module__}:{type(built).__qualname__}"
        likely = [name for name, entry in self._scan().items() if entry.value == place]
        for name in [*self._loaded, *likely, *self]:  # so that the others are not imported for it
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


class PluginWarning(UserWarning):
    """A plug-in that was not asked for is broken."""


def leave_out(error: GenLabError) -> None:
    """Warn of a broken plug-in; always from this line, so that Python shows it once."""
    warnings.warn(f"{error}; it is left out", PluginWarning, stacklevel=1)


def class_path(cls: type) -> str:
    """Module and name of a class, as messages name what no registry has a name for."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "genlab"
