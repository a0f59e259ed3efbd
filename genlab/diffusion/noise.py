"""Noise streams: every sample owns one random stream, made from its seed and drawn on the CPU.

The same seed gives the same image for any batch size, any number of processes, and on CPU or GPU
(up to rounding), because no draw of one sample ever moves the stream of another.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from genlab import compute
from genlab.errors import ConfigError

MAX_SEED = 2**63 - 1


@runtime_checkable
class Noise(Protocol):
    """What a solver or a guidance draws from: one row for each sample of the batch."""

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, (B, *shape), on the batch's device."""
        ...

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape), on the batch's device."""
        ...


class NoiseStream:
    """One random stream for each sample of a batch.

    Args:
        seeds: one seed for each sample, 0 <= seed < 2**63.
        device: where the numbers are wanted. They are always drawn on the CPU, whose generator
            gives the same numbers on every machine, and then moved in one copy.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        bad = [seed for seed in seeds if not 0 <= seed <= MAX_SEED]
        if bad:
            raise ConfigError(f"seeds must lie in 0 ... 2**63 - 1, got {bad[0]}")
        generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        self._generators = generators
        self._device = torch.device(device)

    @classmethod
    def from_generators(
        cls, generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
    ) -> "NoiseStream":
        """Wrap a caller's own generators (diffusers' convention); every draw advances them."""
        stream = cls([], device)
        stream._generators = list(generators)
        return stream

    def __len__(self) -> int:
        return len(self._generators)

    def randn(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "B ..."]:
        """Standard normal numbers, (B, *shape)."""
        rows = [
            torch.randn(tuple(shape), generator=g, dtype=dtype, device=g.device)
            for g in self._generators
        ]
        return self._gather(rows, shape, dtype)

    def rand(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "B ..."]:
        """Uniform numbers in [0, 1), (B, *shape)."""
        rows = [
            torch.rand(tuple(shape), generator=g, dtype=dtype, device=g.device)
            for g in self._generators
        ]
        return self._gather(rows, shape, dtype)

    def _gather(self, rows: list[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if not rows:
            batch = torch.empty(0, *shape, dtype=dtype)
        elif len({row.device for row in rows}) == 1:
            batch = torch.stack(rows)
        else:  # a caller's generators, one here and one there
            batch = torch.stack([row.to(self._device) for row in rows])
        if batch.dtype == torch.float64:
            batch = batch.to(compute.widest(self._device))  # rounding keeps the same noise
        return batch.to(self._device, non_blocking=True)
