"""The class table alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.finetuning.methods.base import Selection
from genlab.networks.layout import Layout


@dataclass(frozen=True, kw_only=True)
class ClassTableTuning(Selection):
    """Trains the weights that embed the classes, and nothing else.

    Choose it where the new classes look like mixtures of those that the model knows, or as the
    floor of a comparison. It is no faster than other methods where every block hangs on the class,
    since the gradient still goes back through all of them.

    Trains 117,504 numbers of a DiT-XL/2 with 101 classes (0.02 %), the null class among them.

    Merging: nothing to merge.

    Source: the part of DiffFit that every method of its comparison shares (arXiv:2304.06648).
    """

    @override
    def chosen(self, network: nn.Module, layout: Layout) -> Iterable[str]:
        """Names of the parameters that train, in any order.

        Raises:
            ConfigError: the network has no class table.
        """
        if not layout.groups["class"]:
            raise ConfigError(
                f"this {type(network).__name__} has no class table, so class-table changes nothing "
                "in it; choose another method, or give the model classes first"
            )
        return layout.groups["class"]
