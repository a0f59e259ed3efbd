"""Files of Inception's architecture with random numbers: the real ones are 96 MB to download."""

import math

import torch
from torch import Tensor

from genlab.eval.extractors.inception_network import official_layers


def random_inception(seed: int = 0) -> dict[str, Tensor]:
    """All 566 tensors, such that features neither vanish nor blow up on the way."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in official_layers().state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
        elif value.ndim > 1:
            tensors[name] = noise * math.sqrt(2 / value[0].numel())
        else:
            scale = name.endswith(("bn.weight", "running_var"))
            tensors[name] = (1 + 0.1 * noise).abs() if scale else 0.1 * noise
    return tensors


def up_to(tensors: dict[str, Tensor], last: str) -> dict[str, Tensor]:
    """The leading layers alone, without counters, as partial files hold them."""
    names = list(official_layers())
    kept = names[: names.index(last) + 1]
    return {
        key: value
        for key, value in tensors.items()
        if key.partition(".")[0] in kept and not key.endswith("num_batches_tracked")
    }
