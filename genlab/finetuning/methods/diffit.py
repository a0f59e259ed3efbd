"""DiffFit: biases, normalisations, the class table, and a factor for each channel of a branch."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.affine import switch_on_affine
from genlab.finetuning.methods.base import (
    Method,
    check_blocks,
    choose_blocks,
    train_only,
    unfreeze,
)
from genlab.finetuning.methods.folding import fold
from genlab.finetuning.methods.norms import affine_notes
from genlab.finetuning.methods.scales import add_scales, held_scale


@dataclass(frozen=True, kw_only=True)
class DiffFit(Method):
    """Trains biases, normalisations and the class table, and adds scale factors to branches.

    Choose it by default: it adapts a pretrained generator to a few classes of one's own, stores
    three megabytes, and costs nothing once merged. Its learning rate is about ten times that of
    pre-training.

    Trains all biases, weight and bias of all normalisations, the class table, and one vector of
    factors, 1 at the start, on each residual branch of the chosen blocks: 770,720 numbers of a
    DiT-XL/2 with 101 classes (0.11 %). Normalisations without parameters, as official DiT's, are
    given a weight of 1 and a bias of 0.

    Merging: factors go into the rows and the bias of the branch's last layer; added weights and
    biases of normalisations go into the modulation. The network has its plain architecture again.

    Attributes:
        blocks: which blocks get scale vectors: "half" (the first half, rounded up), "all", "none",
            or a list of numbers from 0; negative ones count from the end.
        class_table: whether the class table trains.

    Source: Xie et al. 2023, arXiv:2304.06648; which blocks: its Table 4.
    """

    blocks: Any = "half"
    class_table: bool = True

    def __post_init__(self) -> None:
        check_blocks(self.blocks)

    @override
    def prepare(self, network: nn.Module) -> list[str]:
        """Add what the method adds, and let only what trains have gradients.

        Raises:
            ConfigError: there is no such block, the chosen blocks have no branches, or they have
                scale vectors already.
        """
        layout = layout_of(network)
        chosen = {layout.blocks[i] for i in choose_blocks(self.blocks, len(layout.blocks))}
        branches = [branch for branch in layout.branches if branch.block in chosen]
        if self.blocks != "none" and len(self.blocks) and not branches:
            raise ConfigError(
                f"DiffFit has no place for scale vectors in {type(network).__name__}, whose chosen "
                f"blocks (blocks={self.blocks}) have no residual branches; choose others, or none"
            )
        names = add_scales(network, branches)
        switch_on_affine(network, layout)
        groups = layout_of(network).groups
        names += [*groups["bias"], *groups["norm"]]
        if self.class_table:
            names += groups["class"]
        return train_only(network, names, "DiffFit")

    @override
    def merge(self, network: nn.Module) -> nn.Module:
        return unfreeze(fold(network))

    @override
    def notes(self, network: nn.Module) -> list[str]:
        layout = layout_of(network)
        held = [branch for branch in layout.branches if held_scale(network, branch) is not None]
        blocks = {branch.block for branch in held}
        rounded = ", the first half (rounded up)" if self.blocks == "half" else ""
        scales = f"{len(held)} scale vectors stand in {len(blocks)} of {len(layout.blocks)} blocks"
        return [*([scales + rounded] if held else []), *affine_notes(network, layout)]
