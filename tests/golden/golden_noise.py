"""The official random draws, in place of a noise stream."""

from typing import Any

import torch
from golden_cases import MismatchError, Run
from torch import Tensor


class RecordedNoise:
    """The official random draws, in place of a noise stream."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rows = run.draws()

    def randn(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        if not self.rows:
            raise MismatchError(f"{self.run.id}: more noise is drawn than officially")
        row = self.rows.pop(0)
        assert row.shape[1:] == tuple(shape)
        return row.to(dtype)

    def rand(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        raise MismatchError(f"{self.run.id}: uniform numbers are drawn, officially they are not")

    def fork(self, key: str) -> "RecordedNoise":
        raise MismatchError(
            f"{self.run.id}: a fork {key!r} is drawn from, officially there is none"
        )

    def expect_end(self) -> None:
        if self.rows:
            raise MismatchError(f"{self.run.id}: {len(self.rows)} official draws are left over")
