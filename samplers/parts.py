"""Models that a sampler uses beside the one that is sampled: a classifier, a second checkpoint.

A guidance declares which of its options are such parts (`GuidanceOptions.parts`); everything else
is done for all of them alike. Rooms that read files say how a name becomes a part.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from genlab.errors import ConfigError

Loader = TypeVar("Loader", bound=Callable[[str], Any])

_LOADERS: dict[str, Callable[[str], Any]] = {}
_RUN_LOADERS: dict[str, Callable[[str], Any]] = {}


@runtime_checkable
class Counted(Protocol):
    """Anything whose network evaluations are counted."""

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, in rows."""
        ...


@runtime_checkable
class Part(Counted, Protocol):
    """The interface of a model that a sampler uses."""

    def to(self, device: Any = None, dtype: Any = None) -> Any:
        """Move it."""
        ...

    def prepare(self) -> None:
        """Make it ready for sampling, each time a batch begins."""
        ...

    def sha256(self) -> str:
        """Hash of everything that its outputs depend on."""
        ...


def loads(kind: str) -> Callable[[Loader], Loader]:
    """Register what reads parts of a kind: ``@loads("classifier")`` on a function of a name."""

    def register(loader: Loader) -> Loader:
        _LOADERS[kind] = loader
        return loader

    return register


def loads_from_runs(kind: str) -> Callable[[Loader], Loader]:
    """Register what reads parts of a kind out of training runs: of ``runs/mine@...``."""

    def register(loader: Loader) -> Loader:
        _RUN_LOADERS[kind] = loader
        return loader

    return register


def load(kind: str, source: str) -> Part:
    """Read a part.

    Args:
        kind: ``classifier`` (of noisy images), ``discriminator`` (of a GAN) or ``generator`` (a
            diffusion model).
        source: a name, a file or a folder; or the folder of a training run and which of its
            weights, behind an ``@``.

    Raises:
        ConfigError: nothing that reads such parts has been imported, or what was read is none.
        GenLabError: there is no such model, or it is damaged.
    """
    loaders = _RUN_LOADERS if "@" in source and not Path(source).exists() else _LOADERS
    if kind not in loaders:
        raise ConfigError(
            f"nothing here reads the {kind} {source!r}: import genlab.checkpoints, or give "
            "the model itself in place of its name"
        )
    part = loaders[kind](source)
    if not isinstance(part, Part):
        raise ConfigError(
            f"the {kind} {source!r} cannot be asked about noisy images, as a part of a sampler is; "
            "name a diffusion model, or where that is meant a classifier of noisy images"
        )
    return part
