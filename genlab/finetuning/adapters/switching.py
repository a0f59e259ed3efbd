"""Several adapters on one base, which is in memory once."""

from pathlib import Path

from genlab.errors import ConfigError, UnknownNameError, nearest
from genlab.finetuning.adapters.adapter import Adapter, apply, read_adapter
from genlab.finetuning.adapters.loading import folder_of
from genlab.generators.base import Generator

Place = tuple[object, ...]
"""Where a network's tensors are, and of which type."""


class AdapterSet:
    """A base and adapters by name, of which one or none is in use.

    Every adapted model is a generator of its own around the base's tensors: it has copies only of
    what its adapter holds, and the base stays bit for bit what it was. Where the base is moved or
    cast, so are they, when they are next used.

    Args:
        base: a model without an adapter.

    Raises:
        ConfigError: it has one.

    Example::

        models = AdapterSet(genlab.load("dit-fmnist"))
        models.add("lamps", "my-lamps/")
        models.use("lamps").sample(seeds=range(16))
        models.use(None).sample(seeds=range(16))      # the base again
    """

    def __init__(self, base: Generator) -> None:
        self.base = base
        self._adapters: dict[str, Adapter] = {}
        self._made: dict[str, tuple[Place, Generator]] = {}
        self._active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapters, in the order in which they came."""
        return tuple(self._adapters)

    @property
    def active(self) -> str | None:
        """The adapter in use; None is the base."""
        return self._active

    @property
    def generator(self) -> Generator:
        """The model in use."""
        if self._active is None:
            return self.base
        place = _place(self.base)
        made = self._made.get(self._active)
        if made is None or made[0] != place:
            made = self._made[self._active] = self._make(self._adapters[self._active])
        return made[1]

    def add(self, name: str, adapter: Path | str | Adapter) -> None:
        """Read an adapter and check that it fits the base; it is not yet in use.

        Args:
            name: that `use` takes.
            adapter: a folder, the name of a kept one, or one that was read.

        Raises:
            ConfigError: the name is taken.
            CheckpointError: the adapter is damaged, or belongs to another base.
        """
        if name in self._adapters:
            raise ConfigError(f"there is an adapter {name!r} already; remove it first")
        if not isinstance(adapter, Adapter):
            adapter = read_adapter(folder_of(adapter))
        self._made[name] = self._make(adapter)
        self._adapters[name] = adapter

    def use(self, name: str | None) -> Generator:
        """Choose the adapter that `generator` has from now on.

        Args:
            name: of an adapter; None is the base as it is.

        Returns:
            The model, which has its own classes and sampler.

        Raises:
            UnknownNameError: there is no such adapter.
        """
        self._active = self._known(name)
        return self.generator

    def remove(self, name: str) -> None:
        """Forget an adapter; where it is in use, the base is from now on.

        Raises:
            UnknownNameError: there is no such adapter.
        """
        if self._known(name) == self._active:
            self._active = None
        del self._adapters[name]
        self._made.pop(name, None)

    def _known(self, name: str | None) -> str | None:
        if name is not None and name not in self._adapters:
            raise UnknownNameError(f"there is no adapter {name!r}; {nearest(name, self.names)}")
        return name

    def _make(self, adapter: Adapter) -> tuple[Place, Generator]:
        # Sampling lays tensors out for the device: done before, it need not be done to copies.
        self.base.prepare()
        generator = apply(adapter, self.base)
        return _place(self.base), generator


def _place(generator: Generator) -> Place:
    parameters = list(generator.network.parameters())
    return generator.device, generator.dtype, *(each.data_ptr() for each in parameters)
