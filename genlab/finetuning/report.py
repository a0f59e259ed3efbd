"""What a method trains of a network, by group, and what memory that holds."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from genlab.finetuning.layouts import layout_of
from genlab.finetuning.objective import FinetuneObjective, state_shape
from genlab.training.batches import DataFacts

ADDED, OTHER = "added", "other"

ORDER = ("class", "norm", "bias", "last", "modulation", "attention", "mlp", "convolution")
"""A parameter may stand in several groups; it is counted in the first of these."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters of one kind.

    Attributes:
        trainable: numbers that train.
        parameters: all numbers.
    """

    trainable: int = 0
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of a run before its first step.

    Attributes:
        trainable_parameters: numbers that train.
        parameters: all numbers of the prepared network.
        groups: name -> its part; "added" is what the method put into the network.
        held_bytes: memory that a run holds throughout: weights, gradients, optimizer, averages.
            Activations come on top.
    """

    trainable_parameters: int
    parameters: int
    groups: dict[str, Group]
    held_bytes: int

    @property
    def share(self) -> float:
        """The part that trains."""
        return self.trainable_parameters / self.parameters

    def told(self) -> dict[str, Any]:
        """In plain values."""
        return {
            "trainable_parameters": self.trainable_parameters,
            "parameters": self.parameters,
            "share": self.share,
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "held_bytes": self.held_bytes,
        }

    def lines(self) -> list[str]:
        """As a command prints it: a table, and the sum."""
        rows = [("group", "trained", "of")]
        rows += [
            (name, f"{group.trainable:,}", f"{group.parameters:,}")
            for name, group in self.groups.items()
            if group.trainable
        ]
        rows.append(("in all", f"{self.trainable_parameters:,}", f"{self.parameters:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            f"  {name:<{widths[0]}}  {trained:>{widths[1]}}  {total:>{widths[2]}}"
            for name, trained, total in rows
        ]
        table[-1] += f"  ({self.share:.2%})"
        held = self.held_bytes / 2**20
        return [*table, f"memory: {held:,.0f} MiB held throughout, and the activations of a step"]


def make_report(objective: FinetuneObjective, data: DataFacts, averages: int = 1) -> Report:
    """Count what trains.

    Args:
        objective: of the run.
        data: facts of the images.
        averages: running averages that are kept.
    """
    network = objective.build({}, data)[objective.main]
    plain = {name for name, _ in objective.start.network.named_parameters()}
    groups = _groups(network, plain)
    parameters = list(network.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    trained_bytes = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    tensors = [*parameters, *network.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # Gradients, Adam's two moments, the averages, and the network that they are drawn with.
    copies = 1 + 2 + averages + 1
    return Report(
        trainable_parameters=trainable,
        parameters=sum(p.numel() for p in parameters),
        groups=groups,
        held_bytes=weights + copies * trained_bytes,
    )


def facts_without_data(objective: FinetuneObjective, num_classes: int | None) -> DataFacts:
    """What images of the base's kind would be like.

    Args:
        objective: of the run.
        num_classes: of the images; None is the base's.
    """
    base = objective.base
    autoencoder: Any = getattr(base, "autoencoder", None)
    own = num_classes is None or num_classes == base.num_classes
    return DataFacts(
        num_images=0,
        image_shape=state_shape(base),
        num_classes=base.num_classes if num_classes is None else num_classes,
        class_names=base.class_names if own else None,
        autoencoder=None if autoencoder is None else autoencoder.sha256(),
    )


def _groups(network: nn.Module, plain: set[str]) -> dict[str, Group]:
    layout = layout_of(network)
    of: dict[str, str] = {}
    for group in reversed(ORDER):
        of |= dict.fromkeys(layout.groups.get(group, ()), group)
    counts: dict[str, list[int]] = {name: [0, 0] for name in (*ORDER, ADDED, OTHER)}
    for name, parameter in network.named_parameters():
        group = of.get(name, OTHER if name in plain else ADDED)
        counts[group][0] += parameter.numel() if parameter.requires_grad else 0
        counts[group][1] += parameter.numel()
    return {
        name: Group(trainable=trainable, parameters=total)
        for name, (trainable, total) in counts.items()
        if total
    }
