"""What fine-tuning costs, before it starts: parameters that train, bytes stored, memory."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from torch import Tensor, nn

from genlab.choices import check_choice
from genlab.errors import ConfigError
from genlab.finetuning.bases import Base, resolve_base
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.memory import COMPUTE, step_memory
from genlab.finetuning.methods.base import METHODS, Method
from genlab.finetuning.methods.scales import scale_name
from genlab.registry import class_path

ORDER = ("class", "norm", "bias", "last", "modulation", "time", "attention", "mlp", "convolution")
"""Groups of a layout; a parameter that stands in several counts in the first of these."""

SCALE, FIXED, OTHER = "scale", "fixed", "other"
"""Groups beside a layout's: vectors of factors on branches; what no training changes; the rest."""

ADAM_MOMENTS = 2

MIB = 2**20

HOW = (
    "one step was run on the meta device, and the bytes of its tensors added up as they came and "
    "went; fused attention, without the loss's own tensors, libraries' workspaces and the rest of "
    "the process"
)


@dataclass(frozen=True, kw_only=True)
class GroupCount:
    """Parameters of one kind.

    Attributes:
        trainable: numbers that train.
        parameters: all numbers.
    """

    trainable: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """The trainable part of a prepared network.

    Attributes:
        trainable_parameters: numbers that train.
        parameters: all numbers of the prepared network.
        groups: name -> its part. Beside a layout's groups: "scale" (factors on branches), the
            method's own name (whatever else it added), "fixed" (positions) and "other".
        stored_numbers: numbers of the saved delta: what trains, and statistics that training moves.
    """

    trainable_parameters: int
    parameters: int
    groups: Mapping[str, GroupCount]
    stored_numbers: int

    @property
    def share(self) -> float:
        """The part that trains."""
        return self.trainable_parameters / self.parameters

    @property
    def stored_bytes(self) -> dict[str, int]:
        """Type of the stored numbers -> bytes of the saved delta."""
        return {"float32": 4 * self.stored_numbers, "float16": 2 * self.stored_numbers}

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "trainable_parameters": self.trainable_parameters,
            "parameters": self.parameters,
            "share": self.share,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "stored_bytes": self.stored_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a run holds on its device at the peak of a step, on each device alike.

    Attributes:
        weights: the base, and copies of what trains beside what is added.
        optimizer: Adam's two moments of what trains.
        averages: running averages of what trains, and the copy that previews are drawn with.
        gradients: those that are there at the peak.
        activations: everything else in a step, see `genlab.finetuning.memory.step_memory`.
        batch_size: images at a time.
        how: it was estimated.
    """

    weights: int
    optimizer: int
    averages: int
    gradients: int
    activations: int
    batch_size: int
    how: str = HOW

    @property
    def total(self) -> int:
        """All of it together."""
        held = self.weights + self.optimizer + self.averages
        return held + self.gradients + self.activations

    def to_json(self) -> dict[str, Any]:
        """In plain values."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The costs of a run, known before its first step.

    Attributes:
        base: the name of the base.
        method: ``name`` and options of the method.
        num_classes: of the network that trains.
        counts: of its parameters.
        memory: at the peak of a step.
        notes: what the method does that is not obvious.
    """

    base: str
    method: Mapping[str, Any]
    num_classes: int
    counts: ParameterReport
    memory: MemoryEstimate
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """In plain values, as ``--dry-run --json`` prints them."""
        return {
            "base": self.base,
            "method": dict(self.method),
            "num_classes": self.num_classes,
            **self.counts.to_json(),
            "memory": self.memory.to_json(),
            "notes": list(self.notes),
        }

    def table(self, width: int | None = None) -> str:
        """As a terminal shows it: what trains by group, what is stored, what a step holds.

        Args:
            width: columns; None takes the terminal's.
        """
        from rich import box  # heavy, and not needed to count
        from rich.console import Console
        from rich.table import Table

        counts, memory = self.counts, self.memory
        groups = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
        whole = f"{counts.trainable_parameters:,}", f"{counts.parameters:,}", f"{counts.share:.3%}"
        for head, foot in zip(
            ("trainable parameters", "trained", "of", "share"), ("in all", *whole), strict=True
        ):
            groups.add_column(head, foot, justify="left" if foot == "in all" else "right")
        for name, group in counts.groups.items():
            if group.trainable:
                share = f"{group.trainable / group.parameters:.1%}"
                groups.add_row(name, f"{group.trainable:,}", f"{group.parameters:,}", share)
        held = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
        held.add_column(f"memory, {memory.batch_size} images at a time", "in all")
        held.add_column("MiB", f"{memory.total / MIB:,.1f}", justify="right")
        for name in ("weights", "optimizer", "averages", "gradients", "activations"):
            # Most gradients come as activations go: at the peak few are there.
            row = f"{name} at the peak" if name in ("gradients", "activations") else name
            held.add_row(row, f"{getattr(memory, name) / MIB:,.1f}")
        columns = width or shutil.get_terminal_size(fallback=(100, 24)).columns
        text = StringIO()
        console = Console(file=text, width=columns, highlight=False)
        console.print(groups)
        stored = counts.stored_bytes
        console.print(
            f"stored: {stored['float32'] / MIB:,.2f} MiB in float32, "
            f"{stored['float16'] / MIB:,.2f} MiB in float16"
        )
        console.print(held)
        console.print(f"Estimated: {memory.how}.")
        for note in self.notes:
            console.print(f"note: {note}")
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def dry_run_report(
    base: str | Base,
    method: Mapping[str, Any] | Method,
    num_classes: int | None = None,
    *,
    resolution: int | None = None,
    batch_size: int = 32,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    mixed_precision: str = "no",
    averages: int = 1,
) -> DryRun:
    """Count what a method would train of a base, and estimate what memory that takes.

    Nothing is allocated and no weights are read; see `genlab.finetuning.bases.resolve_base` for the
    one exception.

    Args:
        base: its name, or what `resolve_base` made of it (which is changed, and not to be used
            again).
        method: ``name`` and options, see `genlab.finetuning.methods.base.METHODS`; or built.
        num_classes: of the images; None keeps those of the base.
        resolution: height and width in pixels that the base is brought to; None keeps its own.
        batch_size: images a step, in one process.
        gradient_accumulation: parts that a batch is cut into.
        gradient_checkpointing: as in training.
        mixed_precision: as in training: "no", "bf16" or "fp16".
        averages: running averages that are kept.

    Raises:
        UnknownNameError: the base or the method is unknown.
        ConfigError: the method changes nothing in this network, or an option does not fit.
        CheckpointError: a configuration of the base cannot be read.
    """
    check_choice("mixed_precision", mixed_precision, tuple(COMPUTE))
    if isinstance(base, str):
        base = resolve_base(base, num_classes=num_classes, resolution=resolution)
    built: Method = method if isinstance(method, Method) else METHODS.build_named(method)
    plain_bytes = _bytes(base.network)
    counts = count_parameters(base.network, built)
    memory = estimate_memory(
        base.network,
        base.image_shape,
        plain_bytes=plain_bytes,
        batch_size=max(1, batch_size // gradient_accumulation),
        rounds=gradient_accumulation,
        gradient_checkpointing=gradient_checkpointing,
        mixed_precision=mixed_precision,
        averages=averages,
    )
    return DryRun(
        base=base.name,
        method=METHODS.entry_of(built),
        num_classes=base.num_classes,
        counts=counts,
        memory=memory,
        notes=tuple(built.notes(base.network)),
    )


def count_parameters(network: nn.Module, method: Method) -> ParameterReport:
    """Prepare a network by a method and count, group by group.

    Args:
        network: a plain one, on the meta device or any other; it is prepared afterwards.
        method: prepares it.

    Raises:
        ConfigError: see `Method.prepare`.
    """
    # Parameters themselves, not their names: what wraps a layer (peft) gives its weight another.
    plain = {id(parameter): group for parameter, group in _grouped(network)}
    method.prepare(network)
    layout, own_name = layout_of(network), str(METHODS.entry_of(method)["name"])
    added = dict.fromkeys(layout.groups["norm"], "norm")
    added |= {scale_name(branch): SCALE for branch in layout.branches}
    tables = tuple(f"{table.layer}." for table in layout.tables)
    counts = {name: [0, 0] for name in dict.fromkeys((*ORDER, SCALE, own_name, FIXED, OTHER))}
    for name, parameter in network.named_parameters():
        # A copy of the class table (peft's modules_to_save) is the table.
        new = "class" if name.startswith(tables) else added.get(name, own_name)
        group = counts[plain.get(id(parameter), new)]
        group[0] += parameter.numel() if parameter.requires_grad else 0
        group[1] += parameter.numel()
    return ParameterReport(
        trainable_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in network.parameters()),
        groups={
            name: GroupCount(trainable=trainable, parameters=parameters)
            for name, (trainable, parameters) in counts.items()
            if parameters
        },
        stored_numbers=sum(tensor.numel() for tensor in method.saved(network).values()),
    )


def estimate_memory(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    plain_bytes: int,
    batch_size: int,
    rounds: int = 1,
    gradient_checkpointing: bool = False,
    mixed_precision: str = "no",
    averages: int = 1,
) -> MemoryEstimate:
    """Estimate the memory of a run at the peak of a step.

    Args:
        network: prepared, on the meta device; see `genlab.finetuning.memory.step_memory`.
        image_shape: (C, H, W) of what it works on.
        plain_bytes: of the network before it was prepared: the base, whose tensors it shares.
        batch_size: images at a time.
        rounds: micro-batches of a step.
        gradient_checkpointing: as in training.
        mixed_precision: as in training.
        averages: running averages that are kept.

    Raises:
        ConfigError: see `step_memory`.
    """
    places = {tensor.device.type for tensor in (*network.parameters(), *network.buffers())}
    if places != {"meta"}:
        raise ConfigError(
            f"memory is estimated on the meta device, and this {class_path(type(network))} lies on "
            f"{', '.join(sorted(places))}; take resolve_base(...).network"
        )
    trained = sum(_size(p) for p in network.parameters() if p.requires_grad)
    step = step_memory(
        network,
        image_shape,
        batch_size,
        rounds=rounds,
        gradient_checkpointing=gradient_checkpointing,
        mixed_precision=mixed_precision,
    )
    return MemoryEstimate(
        weights=plain_bytes + trained,
        optimizer=ADAM_MOMENTS * trained,
        averages=(averages + 1) * trained,
        gradients=step.gradients,
        activations=step.activations,
        batch_size=batch_size,
    )


def _grouped(network: nn.Module) -> list[tuple[nn.Parameter, str]]:
    layout = layout_of(network)
    group_of = dict.fromkeys(layout.fixed, FIXED)
    for group in ORDER:
        for name in layout.groups.get(group, ()):
            group_of.setdefault(name, group)
    return [(p, group_of.get(name, OTHER)) for name, p in network.named_parameters()]


def _bytes(network: nn.Module) -> int:
    return sum(_size(tensor) for tensor in (*network.parameters(), *network.buffers()))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
