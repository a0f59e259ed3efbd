"""The parts that a network declares, so that fine-tuning never searches parameter names.

A network declares its blocks, its residual branches, its normalisations and its class tables, once,
in `genlab.networks.base.Network.layout`; what blocks of one kind have in common they tell
themselves, as `Parts`. The groups of parameters follow from these and from the kinds of its
modules.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from torch import nn

NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
)
"""Modules whose own parameters make the group "norm", unless a network says otherwise."""

LINEAR_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules whose offsets make the group "bias", beside normalisations; networks name more."""

GROUPS = (
    "bias",
    "norm",
    "class",
    "attention",
    "mlp",
    "convolution",
    "modulation",
    "time",
    "last",
)
"""Every layout has these groups, some of them empty."""

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
        layer: path of the linear layer or convolution that ends it. Where it is spectrally
            normalised, factors on its output do not fold into its weights (see
            `genlab.networks.layers.spectral_norm.remove_spectral_norm`).
        width: output channels of that layer.
        scale: path of the vector (``width``) by which the block multiplies its branch, None there
            until it is set; or None where the network has no place for one, and the
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

    Some have a gain and bias of their own before that (U-Nets), some have not (DiT).

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
        vectors: buffers of the module with one number for each class along their last axis: the
            left singular vectors of a table that is spectrally normalised.
        scale: by which the network multiplies class weights before it asks the module; it may
            depend on the number of classes.
    """

    layer: str
    axis: Literal[0, 1] = 0
    null_row: bool = False
    vectors: tuple[str, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a network is made of; paths are those of ``named_modules``.

    Attributes:
        groups: name of a group -> full names of its parameters, in the network's order. A parameter
            may stand in several groups. "bias": the offsets of linear layers, convolutions and
            normalisations. "norm": all parameters of normalisations. "class": the class tables.
            "attention", "mlp", "convolution": everything inside such branches but what belongs to
            the modulation. "modulation": what turns the condition into scales, shifts and gates.
            "time": what embeds the noise level. "last": the output layer with its normalisation and
            modulation. All of `GROUPS` are there, some of them empty.
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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What one block tells of itself; paths are the network's, not the block's.

    Attributes:
        branches: residual branches, in the order of the computation.
        modulated: how the condition acts on its normalisations.
        modules: group -> paths of modules, or of single parameters, that belong to it.
    """

    branches: tuple[Branch, ...] = ()
    modulated: tuple[ModulatedNorm, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def build_layout(
    network: nn.Module,
    *,
    blocks: Sequence[str],
    parts: Sequence[Parts] = (),
    branches: Sequence[Branch] = (),
    modulated: Sequence[ModulatedNorm] = (),
    tables: Sequence[ClassTable] = (),
    statistics: Sequence[str] = (),
    fixed: Sequence[str] = (),
    modules: Mapping[str, Iterable[str]],
    normalizations: tuple[type[nn.Module], ...] = NORMALIZATIONS,
    layers: tuple[type[nn.Module], ...] = LINEAR_LAYERS,
) -> Layout:
    """Collect a layout: groups that follow from the kinds of modules, and those that are declared.

    Args:
        network: whose parameters are grouped.
        blocks: see `Layout`.
        parts: what blocks tell of themselves.
        branches: more of them, see `Layout`.
        modulated: more of them.
        tables: see `Layout`.
        statistics: see `Layout` and `buffers_of`.
        fixed: see `Layout`.
        modules: group -> paths of modules, or of single parameters; all parameters below them
            belong to it.
        normalizations: kinds of modules that make the group "norm".
        layers: kinds of linear layers and convolutions.
    """
    kinds = (*layers, *normalizations)
    norms = [p for p, module in network.named_modules() if isinstance(module, normalizations)]
    biased = [p for p, module in network.named_modules() if isinstance(module, kinds)]
    declared = [modules, *(part.modules for part in parts)]
    members: dict[str, set[str]] = {
        group: {path for mapping in declared for path in mapping.get(group, ())} for group in GROUPS
    }
    assert not set(chain(*declared)) - set(GROUPS), "a group of another name"
    groups = {group: _below(network, paths) for group, paths in members.items()}
    groups["bias"] += _own(network, biased, ("bias",))
    groups["norm"] += _own(network, norms)
    groups["class"] += _own(network, [table.layer for table in tables], ("weight",))
    order = {name: number for number, (name, _) in enumerate(network.named_parameters())}
    return Layout(
        # A module that peft has wrapped answers for its parts under names that are no parameters'.
        groups={
            group: tuple(sorted(set(names) & order.keys(), key=order.__getitem__))
            for group, names in groups.items()
        },
        blocks=tuple(blocks),
        branches=(*branches, *(branch for part in parts for branch in part.branches)),
        norms=tuple(norms),
        modulated=(*modulated, *(norm for part in parts for norm in part.modulated)),
        tables=tuple(tables),
        statistics=tuple(statistics),
        fixed=tuple(fixed),
    )


def paths_of(network: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """Paths of all modules of some kinds, in the network's order."""
    return [path for path, module in network.named_modules() if isinstance(module, kinds)]


def buffers_of(network: nn.Module, *kinds: type[nn.Module]) -> tuple[str, ...]:
    """Names of the saved buffers that modules of some kinds hold themselves."""
    state = network.state_dict().keys()
    return tuple(
        f"{path}.{name}"
        for path, module in network.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_buffers(recurse=False)
        if f"{path}.{name}" in state
    )


def _own(network: nn.Module, paths: Iterable[str], only: Sequence[str] = ()) -> list[str]:
    """The parameters that modules hold themselves, not those of modules inside them."""
    return [
        f"{path}.{name}"
        for path in paths
        for name, _ in network.get_submodule(path).named_parameters(recurse=False)
        if not only or name in only
    ]


def _below(network: nn.Module, paths: Iterable[str]) -> list[str]:
    """The parameters of these names, or below modules of these names."""
    prefixes = tuple(f"{path}." for path in paths)
    return [name for name, _ in network.named_parameters() if f"{name}.".startswith(prefixes)]
