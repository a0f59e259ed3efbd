"""Random numbers by position: every draw follows from the run's seed and its place in the run.

No generator lives longer than one part of one step, so there is no random state to save: a run that
goes on from step k draws what the uninterrupted run drew from step k on.
"""

from hashlib import sha256

import torch


def derive(seed: int, *address: str | int) -> int:
    """A seed in 0 ... 2**63 - 1 for one place of a run.

    >>> derive(0, "batch", 1) == derive(0, "batch", 1) != derive(0, "batch", 2)
    True
    """
    text = "/".join(map(str, (seed, *address)))
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *address: str | int) -> torch.Generator:
    """A fresh generator for one place of a run."""
    return torch.Generator(device).manual_seed(derive(seed, *address))
