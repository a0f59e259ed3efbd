"""Move a generator, and the generators that its sampler uses, to the device of a run."""

from typing import Any

import torch

from genlab.generators.base import Generator
from genlab.samplers.base import AnySampler


def dtype_of(name: str) -> torch.dtype | None:
    """What a network computes in, by its name in a config; None leaves float32 as it is."""
    dtype: torch.dtype = getattr(torch, name)
    return None if dtype == torch.float32 else dtype


def place(
    generator: Generator,
    sampler: AnySampler,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    compiled: bool = False,
) -> None:
    """Move all of them, so that small models compute in the precision of the large one.

    Args:
        generator: the model that is sampled.
        sampler: what `Generator.build_sampler` made.
        device: where to.
        dtype: what the networks compute in; None keeps it.
        compiled: whether to compile the networks, too.

    Raises:
        ConfigError: there is no such device.
    """
    generator.to(device, dtype)
    if compiled:
        generator.compile()
    place_parts(sampler, device, dtype, compiled=compiled)


def place_parts(
    sampler: AnySampler,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    compiled: bool = False,
) -> None:
    """Move the generators that a sampler uses; see `place`."""
    models: tuple[Any, ...] = tuple(sampler.parts.get("generator", ()))
    for part in models:
        part.to(device, dtype)
        if compiled and isinstance(part, Generator):
            part.compile()
