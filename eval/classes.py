"""Match the labels of samples with the classes of a classifier or of real images."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from genlab.data.class_names import are_numbers, match_classes
from genlab.data.sources.base import some
from genlab.errors import EvaluationError, LabelError


def translate(
    labels: Int64[Tensor, " N"],
    names: Sequence[str] | None,
    other_count: int,
    other_names: Sequence[str] | None,
    whose: str,
    other: str,
) -> Int64[Tensor, " N"]:
    """Labels in another numbering of the classes: by name where both have names, else by number.

    Where one side has names alone, both must have as many classes, and `by_number` says so.

    Args:
        labels: from 0.
        names: of their classes, or None.
        other_count: of the other side's classes.
        other_names: of the other side's classes, or None.
        whose: labels these are, for messages.
        other: what the other side is called in messages.

    Raises:
        EvaluationError: a label is of a class that the other side does not have, or numbers would
            be compared though the named side has another number of classes.

    >>> names, others = ["bag", "boot"], ["boot", "coat", "bag"]
    >>> translate(torch.tensor([0, 1, 1]), names, 3, others, "the samples", "the classifier")
    tensor([2, 0, 0])
    """
    if not len(labels):
        return labels
    unnamed = other_names is None and names is not None and not are_numbers(names)
    if unnamed and names is not None and len(names) != other_count:
        raise EvaluationError(
            f"{whose} have the {len(names)} classes {some(names)}, and {other} has {other_count} "
            "classes without names, so that no class can be told from its number; name the classes "
            "of both alike"
        )
    count = max(int(labels.max()) + 1, len(names or ()))
    try:
        numbers = match_classes(count, names, other_count, other_names)
    except LabelError as error:
        raise EvaluationError(
            f"the classes of {whose} and of {other} do not match: {error}"
        ) from error
    used = labels.unique().tolist()
    absent = [number for number in used if number < 0 or numbers[number] is None]
    if absent and names is not None and other_names is not None:
        raise EvaluationError(
            f"{whose} have the classes {some(names[number] for number in absent)}, which {other} "
            f"does not have (its classes: {some(other_names, 10)}); name the classes alike, or use "
            "a classifier or reference of the same classes"
        )
    if absent:
        raise EvaluationError(
            f"labels lie between {used[0]} and {used[-1]}, {other} has the classes 0 ... "
            f"{other_count - 1}; use a classifier or reference of the same classes"
        )
    table = torch.tensor([-1 if number is None else number for number in numbers])
    return table.to(labels.device)[labels]


def by_number(names: Sequence[str] | None, other_names: Sequence[str] | None) -> bool:
    """Whether classes are compared by number though one side has names.

    >>> by_number(["bag", "boot"], None), by_number(None, None), by_number(["0", "1"], None)
    (True, False, False)
    """
    named = [each for each in (names, other_names) if each is not None and not are_numbers(each)]
    return len(named) == 1
