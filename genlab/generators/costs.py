"""What each model of a stitched run cost: network evaluations, counted, and seconds, measured.

The clock is read at the end of each step and its time given to the model that took the step. On an
accelerator, which runs behind the program, marks are put into its queue of work and read when the
batch is done: nothing waits in between.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch

LARGE = "the model itself"
"""The key of the large model in `Costs`; the small ones have their labels."""

S = TypeVar("S")


@dataclass(frozen=True)
class Cost:
    """What one model cost.

    Attributes:
        evaluations: of its network, in rows: a batch of B through the network adds B.
        seconds: of the steps that it took, guidance and solver included.
    """

    evaluations: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(self.evaluations + other.evaluations, self.seconds + other.seconds)


Costs = Mapping[str, Cost]
"""Model -> what it cost, the large model first; empty for a run of one model."""


class Meter:
    """Measures the steps of one batch.

    Args:
        device: where the models compute.
        count: gives the evaluations of each model so far.
    """

    def __init__(self, device: torch.device, count: Callable[[], Mapping[str, int]]) -> None:
        self._device, self._count = device, count
        self._before: Mapping[str, int] = {}
        self._steps: list[dict[str, int]] = []
        self._marks: list[Any] = []

    def steps(self, steps: Iterator[S]) -> Iterator[S]:
        """The same steps, each of them measured."""
        self._before = self._count()
        self._marks.append(self._mark())
        for step in steps:
            after = self._count()
            self._steps.append({name: n - self._before[name] for name, n in after.items()})
            self._before = after
            self._marks.append(self._mark())
            yield step

    def costs(self) -> dict[str, Cost]:
        """What each model cost; on an accelerator after it has done its work."""
        costs = {name: Cost() for name in self._before}
        for rows, seconds in zip(self._steps, self._seconds(), strict=True):
            whole = sum(rows.values())
            for name, evaluations in rows.items():
                if evaluations:  # a step of several models is shared out by their evaluations
                    costs[name] += Cost(evaluations, seconds * evaluations / whole)
        return costs

    def _mark(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        mark = torch.Event(self._device, enable_timing=True)
        mark.record()
        return mark

    def _seconds(self) -> list[float]:
        pairs = list(pairwise(self._marks))
        if self._device.type == "cpu":
            return [after - before for before, after in pairs]
        self._marks[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


def together(parts: Sequence[Costs]) -> dict[str, Cost]:
    """The costs of several batches."""
    whole: dict[str, Cost] = {}
    for costs in parts:
        for name, cost in costs.items():
            whole[name] = whole.get(name, Cost()) + cost
    return whole


def time_saved(costs: Costs) -> float | None:
    """The share of the time that stitching saved, below 0 where it cost some.

    The counted evaluations of each model times its measured seconds an evaluation, against as many
    evaluations of the large model. None where the large model took no step, so that its speed is
    not known, or where nothing is stitched.
    """
    large = costs.get(LARGE, Cost())
    if large.evaluations == 0 or large.seconds == 0:
        return None
    evaluations = sum(cost.evaluations for cost in costs.values())
    alone = evaluations * large.seconds / large.evaluations
    return 1 - sum(cost.seconds for cost in costs.values()) / alone


def report(costs: Costs, images: int) -> dict[str, Any]:
    """Costs for manifests and records; nothing for a run of one model.

    Args:
        costs: of all batches.
        images: how many were drawn.
    """
    if not costs:
        return {}
    saved = time_saved(costs)
    models = [
        {
            "model": name,
            "evaluations": cost.evaluations,
            "nfe": cost.evaluations / images,
            "seconds": round(cost.seconds, 3),
            "seconds_per_evaluation": (
                cost.seconds / cost.evaluations if cost.evaluations else None
            ),
        }
        for name, cost in costs.items()
    ]
    return {"models": models, "time_saved": None if saved is None else round(saved, 4)}


def to_plain(costs: Costs) -> dict[str, list[float]]:
    """Costs as JSON values, from which `from_plain` makes them again."""
    return {name: [cost.evaluations, cost.seconds] for name, cost in costs.items()}


def from_plain(plain: Mapping[str, Sequence[float]]) -> dict[str, Cost]:
    """Costs from the JSON values that `to_plain` makes."""
    return {name: Cost(int(evaluations), seconds) for name, (evaluations, seconds) in plain.items()}
