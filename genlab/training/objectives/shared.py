"""Functions that several objectives share."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from genlab.diffusion.condition import NULL_CLASS
from genlab.errors import ConfigError


def plain(network: nn.Module) -> Any:
    """The network inside what trains it in parallel: the one that its objective built."""
    return getattr(network, "module", network)


def check_share(name: str, value: float) -> None:
    """Refuse an option that is no share, 0 <= s < 1, before training starts."""
    if not 0 <= value < 1:
        raise ConfigError(f"objective.{name} must lie between 0 and 1, got {value}")


def drop_labels(
    labels: Int64[Tensor, " B"], probability: float, generator: torch.Generator
) -> Int64[Tensor, " B"]:
    """Label dropout: some labels are replaced by the null class, which guidance needs."""
    if not probability:
        return labels
    drop = torch.rand(len(labels), generator=generator, device=generator.device)
    return labels.masked_fill((drop < probability).to(labels.device), NULL_CLASS)
