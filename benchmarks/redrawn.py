"""Random weights for networks that are only timed and compared."""

import math
from collections.abc import Callable

import torch
from torch import nn


@torch.no_grad()
def redraw(network: nn.Module, is_scale: Callable[[str], bool] = lambda name: False) -> None:
    """Unit-gain random weights in every layer: at their first values many branches are silent.

    Args:
        network: changed in place, the same way each time.
        is_scale: whether a parameter of this name multiplies, and so is drawn around 1, not 0.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        else:
            parameter.copy_(0.1 * noise + is_scale(name))
