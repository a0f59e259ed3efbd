"""Mean and covariance of features, in one pass, in float64, mergeable across processes and runs."""

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class Moments:
    """Count, mean and covariance of rows that come in batches.

    The state is the count, the mean and the scatter matrix around it; batches and other moments are
    merged by the pairwise update of Chan, Golub and LeVeque 1983, which does not cancel. Memory is
    d^2 numbers, whatever the count.

    Args:
        dim: width of a row.
        device: where to accumulate; float64 is needed there.

    Attributes:
        count: rows so far.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, rows: Float[Tensor, "N d"]) -> "Moments":
        """The moments of rows that are all there."""
        moments = cls(rows.shape[1], rows.device)
        moments.update(rows)
        return moments

    @classmethod
    def from_statistics(
        cls, count: int, mean: Float64[Tensor, " d"], cov: Float64[Tensor, "d d"]
    ) -> "Moments":
        """Moments that somebody else has computed; ``cov`` is the unbiased covariance."""
        moments = cls(len(mean), mean.device)
        moments.count = count
        moments._mean = mean.clone()
        moments._scatter = cov * (count - 1)
        return moments

    @property
    def dim(self) -> int:
        """Width of a row."""
        return len(self._mean)

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """The mean."""
        return self._mean

    @property
    def cov(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance; needs two rows."""
        return self._scatter / (self.count - 1)

    def update(self, rows: Float[Tensor, "N d"]) -> None:
        """Take in more rows, in any floating type."""
        if len(rows) == 0:
            return
        rows = rows.to(self._mean)
        mean = rows.mean(0)
        centred = rows - mean
        self._merge(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Take in the rows of other moments."""
        if other.count:
            self._merge(other.count, other._mean.to(self._mean), other._scatter.to(self._scatter))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        step = mean - self._mean
        self._scatter += scatter + torch.outer(step, step) * (self.count * count / total)
        self._mean += step * (count / total)
        self.count = total

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors, for a file."""
        return {
            "count": torch.tensor(self.count),
            "mean": self._mean,
            "scatter": self._scatter,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Moments":
        """The moments that `state_dict` described."""
        moments = cls(len(state["mean"]), state["mean"].device)
        moments.count = int(state["count"])
        moments._mean = state["mean"].clone()
        moments._scatter = state["scatter"].clone()
        return moments
