"""Noise streams: every sample owns one random stream, made from its seed and drawn on the CPU.

The same seed gives the same noise for any batch size, any number of processes, and on CPU or GPU,
because no draw of one sample ever moves the stream of another; the image that is made of it differs
by rounding alone.
"""

import hashlib
from collections import Counter
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
    """A source of random numbers for solvers and guidance: one row for each sample of the batch."""

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, (B, *shape), on the batch's device."""
        ...

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape), on the batch's device."""
        ...

    def fork(self, key: str) -> "Noise":
        """A stream of its own for each sample; what is drawn from it moves nothing else.

        Args:
            key: tells forks of one stream apart. The same key gives the same numbers, whatever was
                drawn before.
        """
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
        self._generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        self._device = torch.device(device)
        self._roots: list[bytes] | None = None  # what forks are made from, once one is

    @classmethod
    def from_generators(
        cls, generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
    ) -> "NoiseStream":
        """Wrap a caller's own generators (diffusers' convention); every draw advances them.

        Forks are made from the states in which they are handed over: a generator that was just
        seeded gives the forks of its seed.
        """
        stream = cls([], device)
        stream._generators = list(generators)
        stream._roots = _roots(generators)
        return stream

    def fork(self, key: str) -> "NoiseStream":
        """A stream of its own for each sample, which depends on the seed and ``key`` alone."""
        if self._roots is None:
            fresh = [torch.Generator("cpu").manual_seed(g.initial_seed()) for g in self._generators]
            self._roots = _roots(fresh)
        stream = NoiseStream([], self._device)
        stream._roots = [_digest(root, key.encode()) for root in self._roots]
        seeds = [int.from_bytes(root[:8], "little") & MAX_SEED for root in stream._roots]
        stream._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
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


def _roots(generators: Sequence[torch.Generator]) -> list[bytes]:
    """A digest of each generator's state; images that share a generator get different ones."""
    earlier: Counter[int] = Counter()
    roots = []
    for generator in generators:
        turn = earlier[id(generator)]
        earlier[id(generator)] += 1
        roots.append(_digest(generator.get_state().numpy().tobytes(), str(turn).encode()))
    return roots


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=32).digest()
