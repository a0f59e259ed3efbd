"""What the benchmarks share: ways to compute one thing, timed in interleaved rounds.

Every round runs each variant once, one after the other, and ratios are taken within a round: a
machine's speed drifts from minute to minute, ratios of neighbours do not. Reported are medians over
the rounds, and the range of the ratios.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch
from torch import nn

from genlab.compute import choose


@dataclass
class Variant:
    """One way to compute something.

    Attributes:
        name: in the table.
        run: computes it once.
        per: what the seconds of a run are divided by, for instance the images of a batch.
        seconds: of each round, divided.
        result: of the first run.
    """

    name: str
    run: Callable[[], Any]
    per: float = 1
    seconds: list[float] = field(default_factory=list, init=False)
    result: Any = field(default=None, init=False)


class Sampling(Variant):
    """A way to sample whose network is timed by itself.

    Several threads may be in the network at once, each with rows of its own: time counts while at
    least one of them is.

    Attributes:
        inside: seconds that the network took, of each run.
    """

    def __init__(
        self,
        name: str,
        sample: Callable[[], Any],
        network: nn.Module,
        per: float,
    ) -> None:
        super().__init__(name, self._run, per=per)
        self._sample, self._started = sample, 0.0
        self._within, self._lock = 0, Lock()
        self._runs = False
        self.inside: list[float] = []
        network.register_forward_pre_hook(self._start)
        network.register_forward_hook(self._stop)

    def _run(self) -> Any:
        self.inside.append(0.0)
        self._runs = True
        try:
            with torch.no_grad():
                return self._sample()
        finally:
            self._runs = False

    def _start(self, *_: Any) -> None:
        with self._lock:
            if self._within == 0:
                self._started = time.perf_counter()
            self._within += self._runs  # variants may share the network

    def _stop(self, *_: Any) -> None:
        with self._lock:
            self._within -= self._runs
            if self._runs and self._within == 0:
                self.inside[-1] += time.perf_counter() - self._started


Column = Callable[[Variant, Variant], str]
"""The cell of a variant in a table, given it and the first one."""


class Ratios:
    """Ratios of neighbours, formatted as ``median (least-greatest)``.

    Args:
        mine: a number of each round.
        theirs: as many, which it is divided by.
    """

    def __init__(self, mine: Sequence[float], theirs: Sequence[float]) -> None:
        self.values = [a / b for a, b in zip(mine, theirs, strict=True)]

    def __format__(self, spec: str) -> str:
        low, high = min(self.values), max(self.values)
        return f"{statistics.median(self.values):{spec}} ({low:{spec}}-{high:{spec}})"


def parser(doc: str, rounds: int) -> argparse.ArgumentParser:
    """Begin a command line: the first line of a benchmark's ``__doc__``, rounds and threads."""
    made = argparse.ArgumentParser(description=doc.partition("\n")[0])
    made.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    made.add_argument("--threads", type=int, default=2, help="of torch; default: %(default)s")
    return made


def describe(*notes: str) -> None:
    """Print what the figures were measured on."""
    for key, value in choose(torch.device("cpu")).describe().items():
        print(f"{key}: {value}")
    print(", ".join((f"torch {torch.__version__}", f"{torch.get_num_threads()} threads", *notes)))


def measure(
    variants: Sequence[Variant],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm_up: bool = True,
) -> None:
    """Run all variants in turn, so many rounds.

    Args:
        variants: get their seconds and results.
        rounds: that count.
        clock: wall or processor time, in seconds.
        warm_up: whether a round that does not count comes first: it compiles and fills caches.
    """
    for index in range(1 - warm_up, rounds + 1):
        for variant in variants:
            started = clock()
            result = variant.run()
            seconds = clock() - started
            if variant.result is None:
                variant.result = result
            if index > 0:
                variant.seconds.append(seconds / variant.per)
        print(f"round {index} of {rounds}", file=sys.stderr)


def report(
    title: str,
    unit: str,
    variants: Sequence[Variant],
    goals: Mapping[str, float],
    columns: Mapping[str, Column],
) -> None:
    """Print a table of variants, their ratios to the first one, and more columns.

    Args:
        title: of the table.
        unit: of its seconds, for instance ``s/step``.
        variants: measured.
        goals: name -> ratio wanted.
        columns: heading -> what stands below it.
    """
    print(f"{title:<14} {unit:>12} {'ratio (range)':>20} {'goal':>5}", end="")
    print("".join(f" {heading:>10}" for heading in columns))
    base = variants[0]
    for variant in variants:
        ratios = f"{Ratios(variant.seconds, base.seconds):.3f}"
        median, goal = statistics.median(variant.seconds), goals.get(variant.name, "-")
        print(f"{variant.name:<14} {median:>12.4g} {ratios:>20} {goal:>5}", end="")
        print("".join(f" {column(variant, base):>10}" for column in columns.values()))


def relative_error(variant: Variant, base: Variant) -> str:
    """A column: distance of a variant's tensor from the first one's, in the 2-norm."""
    difference = variant.result.double() - base.result.double()
    return f"{difference.norm() / base.result.double().norm():.1e}"


def greatest_error(variant: Variant, base: Variant) -> str:
    """A column: the greatest difference of an element."""
    return f"{(variant.result - base.result).abs().max():.1e}"


def outside(variant: Variant, _: Variant) -> str:
    """A column: the share of the time that a `Sampling` spends outside its network."""
    assert isinstance(variant, Sampling)
    pairs = zip(variant.inside[1:], variant.seconds, strict=True)  # the first run was the warm-up
    return f"{statistics.median(1 - inside / (s * variant.per) for inside, s in pairs):.2%}"
