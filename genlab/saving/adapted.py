"""The mark of a network that still carries a fine-tuning adapter.

The mark stands on the network, so that every generator and pipeline around it finds it, and so does
every copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from genlab.errors import ConfigError

MARK = "_genlab_adaptation"


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """An adapter in a network.

    Attributes:
        name: of its folder.
        base: name of the model that it belongs to.
        method: ``name`` and options of the method that made it.
        sha256: of its numbers and of all that decides how they act.
        plain: whether the network has the architecture of its base, since the method adds nothing.
    """

    name: str
    base: str
    method: Mapping[str, Any]
    sha256: str
    plain: bool

    def identity(self) -> dict[str, Any]:
        """Everything that images depend on, in plain values, without names and paths."""
        return {"method": dict(self.method), "sha256": self.sha256}


def mark(network: nn.Module, adaptation: Adaptation | None) -> None:
    """Record which adapter a network has; None removes the record."""
    network.__dict__.pop(MARK, None)
    if adaptation is not None:
        network.__dict__[MARK] = adaptation  # beside the modules, parameters and buffers


def adaptation_of(network: nn.Module) -> Adaptation | None:
    """The adapter that a network has, or None."""
    adaptation: Adaptation | None = network.__dict__.get(MARK)
    return adaptation


def check_plain(network: nn.Module, name: str) -> None:
    """Refuse a network that an adapter has made another architecture than its configuration says.

    Args:
        network: about to be written.
        name: it is, as the message begins.

    Raises:
        ConfigError: says how to merge it.
    """
    adaptation = adaptation_of(network)
    if adaptation is not None and not adaptation.plain:
        raise ConfigError(
            f"{name} has the adapter {adaptation.name!r} beside its weights, which a plain model's "
            "folder cannot hold; merge it first ('genlab adapter merge FOLDER -o merged/', or "
            "genlab.finetuning.adapters.merging.merged)"
        )
