"""Mean and covariance of features, in one pass, in float64, mergeable across processes and runs."""

import math
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
        """Moments that another program has computed; ``cov`` is the unbiased covariance."""
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
        step = self._step(len(rows), mean)
        # Chan's correction is the square of one more row: one product, added in place.
        centred = torch.cat([rows - mean, step[None]])
        self._scatter.addmm_(centred.T, centred)
        self._advance(len(rows), mean)

    def merge(self, other: "Moments") -> None:
        """Take in the rows of other moments."""
        if other.count:
            mean = other._mean.to(self._mean)
            step = self._step(other.count, mean)
            self._scatter.add_(other._scatter.to(self._scatter)).addr_(step, step)
            self._advance(other.count, mean)

    def _step(self, count: int, mean: Tensor) -> Tensor:
        """The vector whose outer square goes into the scatter when other rows come in.

        Chan, Golub and LeVeque 1983, Eq. 2.1b, with the root of its weight.
        """
        return (mean - self._mean) * math.sqrt(self.count * count / (self.count + count))

    def _advance(self, count: int, mean: Tensor) -> None:
        self.count += count
        self._mean += (mean - self._mean) * (count / self.count)

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
