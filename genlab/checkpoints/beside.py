"""Models without a folder of their own, such as an adapter that needs its base.

A higher layer registers here how `genlab.checkpoints.load` finds and reads them. Nothing heavy is
imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genlab.generators.base import Generator


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One kind of such models.

    Attributes:
        finds: whether a name or path means one; only the folder is listed.
        read: a name or path -> the model; None where it means nothing of this kind.
        names: of those that are known on this machine.
    """

    finds: Callable[[str], bool]
    read: Callable[[str], "Generator | None"]
    names: Callable[[], list[str]]


_KINDS: dict[str, Beside] = {}


def register(kind: str, models: Beside) -> None:
    """Let `genlab.checkpoints.load` find models of a kind; a second registration replaces it."""
    _KINDS[kind] = models


def read(name: str) -> "Generator | None":
    """The model that a name or path means, or None.

    Raises:
        GenLabError: it is damaged, or lacks what it needs.
    """
    models = (kind.read(name) for kind in _KINDS.values())
    return next((model for model in models if model is not None), None)


def finds(name: str) -> bool:
    """Whether a name or path means a model of any kind.

    Raises:
        GenLabError: it will be one, but is not yet.
    """
    return any(kind.finds(name) for kind in _KINDS.values())


def names() -> list[str]:
    """All that are known on this machine."""
    return [name for kind in _KINDS.values() for name in kind.names()]
