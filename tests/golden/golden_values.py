"""The values of a golden case without runs: a tree of numbers, each compared and ticked off.

What a value is stands in its key; each kind of case has a table of keys that it knows, and a key
that its table does not know fails the case, as does a tensor that nobody has looked at.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from golden_cases import Case, MismatchError
from safetensors.torch import load_file
from torch import Tensor

from genlab.eval.metrics.base import FeatureSet

FLOAT64 = 1e-6
"""What is promised for metrics of float64 features, relative."""

Rules = Mapping[str, Callable[..., None]]


class Values:
    """The values and tensors of one case, and which of them were looked at."""

    def __init__(self, case: Case) -> None:
        self.case, self.meta = case, case.meta
        self.own = dict(case.tensors)
        self.tensors = self._others() | self.own
        self.read: set[str] = set()

    def _others(self) -> dict[str, Tensor]:
        """Features that the case takes from a neighbouring one, as meta.json says."""
        found = re.match(r"(\S+/io\.safetensors)", self.meta.get("features_from", ""))
        return load_file(self.case.folder.parent / found[1]) if found else {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise MismatchError(f"{self.case.name}: there is no tensor {name!r}")
        self.read.add(name)
        return self.tensors[name]

    def expect(
        self, what: str, ours: float, theirs: float, rtol: float = FLOAT64, atol: float = 0.0
    ) -> None:
        """Compare one number."""
        if not abs(ours - theirs) <= rtol * abs(theirs) + atol:  # a NaN fails, too
            raise MismatchError(
                f"{self.case.name}: {what} is {ours!r}, not {theirs!r} (rtol {rtol:.1g}, "
                f"atol {atol:.1g})"
            )

    def apply(self, rules: Rules, values: Mapping[str, Any], *arguments: Any) -> None:
        """Let the rule that knows a key check its value, for all keys."""
        for key, value in values.items():
            matches = [(re.fullmatch(pattern, key), rule) for pattern, rule in rules.items()]
            known = [(match, rule) for match, rule in matches if match]
            if len(known) != 1:
                raise MismatchError(f"{self.case.name}: this check does not know the value {key!r}")
            [(match, rule)] = known
            assert match is not None
            with self._naming(key):
                rule(self, value, *arguments, *match.groups())

    @contextmanager
    def _naming(self, key: str) -> Iterator[None]:
        try:
            yield
        except MismatchError as error:
            if repr(key) in str(error):
                raise
            raise MismatchError(f"{key!r}: {error}") from error

    def note(self, pattern: str) -> str:
        """What a note of the case says that no value does; without it the case fails."""
        for note in self.meta["notes"]:
            if found := re.search(pattern, note):
                return found[1]
        raise MismatchError(f"{self.case.name}: no note says {pattern!r}")

    def expect_end(self) -> None:
        left = set(self.own) - self.read
        if left:
            raise MismatchError(
                f"{self.case.name}: this check does not know {', '.join(sorted(left))}"
            )


def features(rows: Tensor, **others: Tensor) -> FeatureSet:
    return FeatureSet(count=len(rows), rows={"features": rows, **others})
