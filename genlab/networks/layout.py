"""What a network tells of its parts, so that fine-tuning never searches parameter names.

A network declares its blocks, its residual branches, its normalisations and its class tables, once,
in `genlab.networks.base.Network.layout`; the groups of parameters follow from these and from the
kinds of its modules.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
)
"""Modules whose own parameters make the group "norm", unless a network says otherwise."""

BranchKind = Literal["attention", "mlp", "convolution"]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some output rows of a linear layer.

    Attributes:
        layer: its path.
        start: the first row.
        stop: behind the last.
    """

    layer: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A residual branch of a block: where a scale, an adapter or a fold goes.

    Attributes:
        block: path of the block that it belongs to.
        kind: what the branch does.
        layer: path of the linear layer or convolution that ends it.
        width: output channels of that layer.
        scale: path of the vector (``width``) by which the block multiplies its branch, None there
            until somebody sets it; or None where the network has no place for one, and the
            layer's output is to be multiplied.
        gate: rows of the modulation that multiply the branch (adaLN-Zero's gate), or None.
    """

    block: str
    kind: BranchKind
    layer: str
    width: int
    scale: str | None = None
    gate: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class ModulatedNorm:
    """A normalisation that the condition scales by ``1 + scale`` and then shifts.

    Attributes:
        norm: path of the normalisation.
        scale: rows of the modulation that give ``scale``.
        shift: rows of the modulation that give ``shift``.
    """

    norm: str
    scale: Rows
    shift: Rows


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Weights that have one row (or column) for each class.

    Attributes:
        layer: path of the module.
        axis: of its weight along which the classes lie: 0 in an embedding (K, D), 1 in a linear
            layer over class weights (D, K).
        null_row: whether a row behind the last class stands for 'no class'.
    """

    layer: str
    axis: Literal[0, 1] = 0
    null_row: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a network is made of; paths are those of ``named_modules``.

    Attributes:
        groups: name of a group -> full names of its parameters, in the network's order. A parameter
            may stand in several groups. "bias": the offsets of linear layers, convolutions and
            normalisations. "norm": all parameters of normalisations. "class": the class tables.
            "attention", "mlp", "convolution": everything inside such branches but what belongs to
            the modulation. "modulation": what turns the condition into scales, shifts and gates.
            "last": the output layer with its normalisation and modulation.
        blocks: paths of the blocks, in the order of the computation.
        branches: residual branches, in the order of the computation.
        norms: paths of all normalisations, those without parameters included.
        modulated: how the condition acts on normalisations, where it does.
        tables: the class tables.
        statistics: names of buffers that change in training (running statistics, singular vectors).
        fixed: names of parameters that no training changes (a table of positions).
    """

    groups: Mapping[str, tuple[str, ...]]
    blocks: tuple[str, ...]
    branches: tuple[Branch, ...] = ()
    norms: tuple[str, ...] = ()
    modulated: tuple[ModulatedNorm, ...] = ()
    tables: tuple[ClassTable, ...] = ()
    statistics: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


def build_layout(
    network: nn.Module,
    *,
    blocks: Sequence[str],
    branches: Sequence[Branch] = (),
    modulated: Sequence[ModulatedNorm] = (),
    tables: Sequence[ClassTable] = (),
    statistics: Sequence[str] = (),
    fixed: Sequence[str] = (),
    modules: Mapping[str, Iterable[str]],
    normalizations: tuple[type[nn.Module], ...] = NORMALIZATIONS,
) -> Layout:
    """Collect a layout: groups that follow from the kinds of modules, and those that are declared.

    Args:
        network: whose parameters are grouped.
        blocks: see `Layout`.
        branches: see `Layout`.
        modulated: see `Layout`.
        tables: see `Layout`.
        statistics: see `Layout`.
        fixed: see `Layout`.
        modules: group -> paths of modules; all parameters below them belong to it.
        normalizations: kinds of modules that make the group "norm".
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd, *normalizations)
    norms = [p for p, module in network.named_modules() if isinstance(module, normalizations)]
    biased = [p for p, module in network.named_modules() if isinstance(module, kinds)]
    groups = {
        "bias": _own(network, biased, ("bias",)),
        "norm": _own(network, norms),
        "class": _own(network, [table.layer for table in tables], ("weight",)),
    }
    for group, paths in modules.items():
        groups[group] = _below(network, paths)
    return Layout(
        groups=groups,
        blocks=tuple(blocks),
        branches=tuple(branches),
        norms=tuple(norms),
        modulated=tuple(modulated),
        tables=tuple(tables),
        statistics=tuple(statistics),
        fixed=tuple(fixed),
    )


def _own(network: nn.Module, paths: Iterable[str], only: Sequence[str] = ()) -> tuple[str, ...]:
    """The parameters that modules hold themselves, not those of modules inside them."""
    return tuple(
        f"{path}.{name}"
        for path in paths
        for name, _ in network.get_submodule(path).named_parameters(recurse=False)
        if not only or name in only
    )


def _below(network: nn.Module, paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        f"{path}.{name}"
        for path in paths
        for name, _ in network.get_submodule(path).named_parameters()
    )
