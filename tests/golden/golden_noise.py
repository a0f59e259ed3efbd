"""The official random draws, in place of a noise stream."""

import copy
from collections import defaultdict
from typing import Any

import torch
from golden_cases import MismatchError, Run
from torch import Tensor

MAIN = ""
"""The stream of draws without a kind and of those by torch's ``rand...`` functions."""


class RecordedNoise:
    """The official random draws, in place of a noise stream.

    Draws of another kind ("brownian", "cads") come from a source of their own: each kind is the
    stream that `fork` gives by that name.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.streams: dict[str, list[Tensor]] = defaultdict(list)
        for kind, row in run.draws_by_kind():
            self.streams[MAIN if kind.startswith("rand") else kind].append(row)
        self.rows = self.streams[MAIN]

    def fork(self, key: str) -> "RecordedNoise":
        """The draws of that kind, where those with the same key before have left off."""
        fork = copy.copy(self)  # shares the streams, so expect_end() of any sees them all
        fork.rows = self.streams[key]
        return fork

    def randn(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        if not self.rows:
            raise MismatchError(f"{self.run.id}: more noise is drawn than officially")
        row = self.rows.pop(0)
        assert row.shape[1:] == tuple(shape)
        return row.to(dtype)

    def rand(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        raise MismatchError(f"{self.run.id}: uniform numbers are drawn, officially they are not")

    def expect_end(self) -> None:
        """Fail unless all draws of all streams were taken."""
        for kind, rows in self.streams.items():
            if rows:
                what = f"official draws{f' of {kind}' if kind else ''}"
                raise MismatchError(f"{self.run.id}: {len(rows)} {what} are left over")
