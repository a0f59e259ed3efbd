"""Norm tuning: weight and bias of every normalisation, and the class table."""

from dataclasses import dataclass

from torch import nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.affine import switch_on_affine, switched_on
from genlab.finetuning.methods.base import Method, train_only, unfreeze
from genlab.finetuning.methods.folding import fold
from genlab.networks.layout import Layout


@dataclass(frozen=True, kw_only=True)
class NormTuning(Method):
    """Trains weight and bias of every normalisation.

    Choose it to store the least that still acts in every block.

    Trains 248,832 numbers of a DiT-XL/2 with 101 classes (0.04 %), 131,328 of them in its 57
    normalisations, which officially have no parameters: they are given a weight of 1 and a bias of
    0, and the output stays as it was.

    Merging: added weights and biases go into the modulation, which has its plain architecture
    again. Where a network has them by itself, there is nothing to merge.

    Attributes:
        class_table: whether the class table trains, too.

    Source: Basu et al. 2023, arXiv:2304.01917 (LN-Tune), here with the class table.
    """

    class_table: bool = True

    @override
    def prepare(self, network: nn.Module) -> list[str]:
        """Add what the method adds, and let only what trains have gradients.

        Raises:
            ConfigError: the network has no normalisations, or none that can have parameters.
        """
        layout = layout_of(network)
        switch_on_affine(network, layout)
        groups = layout_of(network).groups
        if not groups["norm"]:
            kinds = sorted({type(network.get_submodule(path)).__name__ for path in layout.norms})
            without = f"its normalisations ({', '.join(kinds)}) cannot have weights"
            raise ConfigError(
                f"norm tuning changes nothing in {type(network).__name__}: "
                f"{without if kinds else 'it has no normalisations'}; choose another method"
            )
        table = groups["class"] if self.class_table else ()
        return train_only(network, [*groups["norm"], *table], "NormTuning")

    @override
    def merge(self, network: nn.Module) -> nn.Module:
        return unfreeze(fold(network))

    @override
    def notes(self, network: nn.Module) -> list[str]:
        return affine_notes(network, layout_of(network))


def affine_notes(network: nn.Module, layout: Layout) -> list[str]:
    """What was done to normalisations without parameters, and whether it can be merged."""
    added = switched_on(network, layout)
    modulated = {each.norm for each in layout.modulated}
    stuck = [path for path in added if path not in modulated]
    notes = []
    if added:
        notes.append(
            f"{len(added)} of {len(layout.norms)} normalisations had no parameters and were given "
            "a weight of 1 and a bias of 0"
        )
    if stuck:
        notes.append(
            f"{len(stuck)} of these (the first: {stuck[0]}) stand before no modulation, so the "
            "network cannot be merged"
        )
    return notes
