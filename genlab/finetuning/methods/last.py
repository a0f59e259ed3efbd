"""The output layer, and as many of the last blocks as wanted."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.finetuning.methods.base import Selection
from genlab.networks.layout import Layout


@dataclass(frozen=True, kw_only=True)
class LastLayers(Selection):
    """Trains the output layer with its normalisation and modulation, and the last blocks.

    Choose it for speed: with ``class_table=false`` no gradient goes back beyond the first layer
    that trains. It changes how details are drawn, less what is drawn.

    Trains, of a DiT-XL/2 with 101 classes, 2,810,912 numbers (0.42 %) with no block, and
    23,905,152 more for each.

    Merging: nothing to merge.

    Attributes:
        blocks: how many of the last blocks train, 0 ... all of them.
        class_table: whether the class table trains, too, which takes the gradient back through the
            whole network.

    Source: the usual linear probe and its extension, for instance arXiv:1411.1792.
    """

    blocks: int = 0
    class_table: bool = True

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise ConfigError(f"blocks counts the last blocks that train, 0 or more: {self.blocks}")

    @override
    def chosen(self, network: nn.Module, layout: Layout) -> Iterable[str]:
        """Names of the parameters that train, in any order.

        Raises:
            ConfigError: there are not so many blocks, or the layout names no output layer.
        """
        depth = len(layout.blocks)
        if self.blocks > depth:
            raise ConfigError(
                f"{type(network).__name__} has {depth} blocks, so its last {self.blocks} cannot be "
                f"trained; give blocks=0 ... {depth}"
            )
        if not layout.groups.get("last"):
            raise ConfigError(
                f"the layout of {type(network).__name__} names no output layer, so last trains "
                "nothing in it; choose another method"
            )
        names = [*layout.groups["last"]]
        for path in layout.blocks[depth - self.blocks :]:
            block = network.get_submodule(path)
            names += [f"{path}.{name}" for name, _ in block.named_parameters()]
        return [*names, *layout.groups["class"]] if self.class_table else names
