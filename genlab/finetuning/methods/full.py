"""Full fine-tuning: everything trains."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from typing_extensions import override

from genlab.finetuning.methods.base import Selection
from genlab.networks.layout import Layout


@dataclass(frozen=True, kw_only=True)
class FullTuning(Selection):
    """Trains every parameter but fixed positions.

    Choose it where there are thousands of images, memory for the optimizer's state of the whole
    network, and the best fit counts more than size. On some dozens of images it memorises them.
    Its learning rate is that of pre-training.

    Trains 673,799,072 numbers of a DiT-XL/2 with 101 classes (100 %); what is stored is as large
    as the model.

    Merging: nothing to merge.

    Source: the baseline of DiffFit's comparison, arXiv:2304.06648, Table 1.
    """

    @override
    def chosen(self, network: nn.Module, layout: Layout) -> Iterable[str]:
        fixed = set(layout.fixed)
        return [name for name, _ in network.named_parameters() if name not in fixed]
