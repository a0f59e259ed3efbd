"""BitFit: all biases, and the class table."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from typing_extensions import override

from genlab.finetuning.methods.base import Selection
from genlab.networks.layout import Layout


@dataclass(frozen=True, kw_only=True)
class BitFit(Selection):
    """Trains all biases.

    Choose it where nothing may be added to the network: what it trains is a plain checkpoint at any
    time. In DiffFit's comparison it comes close to full fine-tuning.

    Trains 607,136 numbers of a DiT-XL/2 with 101 classes (0.09 %): 489,632 biases, those of the
    modulation among them, and the class table.

    Merging: nothing to merge.

    Attributes:
        class_table: whether the class table trains, too, as in DiffFit's comparison; off, these
            are the biases alone.

    Source: Ben Zaken et al. 2022, arXiv:2106.10199; with the table: arXiv:2304.06648, Table 1.
    """

    class_table: bool = True

    @override
    def chosen(self, network: nn.Module, layout: Layout) -> Iterable[str]:
        table = layout.groups["class"] if self.class_table else ()
        return [*layout.groups["bias"], *table]
