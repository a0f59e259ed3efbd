"""Vectors of factors on the outputs of branches, gamma of DiffFit: put on and taken off."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.finetuning.methods.base import parent_of
from genlab.networks.layout import Branch

GAMMA = "gamma"
"""Name of the vector on a layer whose block has no place for one."""


def scale_name(branch: Branch) -> str:
    """The name of a branch's vector among the parameters of a network that has it."""
    return branch.scale or f"{branch.layer}.{GAMMA}"


def add_scales(network: nn.Module, branches: Iterable[Branch]) -> list[str]:
    """Multiply branches by vectors of ones, which changes no bit of the output.

    A block multiplies where it has a place for the vector; else a hook on the branch's last layer
    does, which copies of the network have, too.

    Returns:
        The names of the new parameters, (``branch.width``,) each.

    Raises:
        ConfigError: a branch has a vector already, or ends in another kind of layer; the network is
            unchanged.
    """
    chosen = list(branches)
    for branch in chosen:
        _check_free(network, branch)
    for branch in chosen:
        weight = network.get_submodule(branch.layer).get_parameter("weight")
        owner, name = parent_of(network, scale_name(branch))
        ones = torch.ones(branch.width, dtype=weight.dtype, device=weight.device)
        owner.register_parameter(name, nn.Parameter(ones))
        if branch.scale is None:
            owner.register_forward_hook(_multiply)
    return [scale_name(branch) for branch in chosen]


def _check_free(network: nn.Module, branch: Branch) -> None:
    if held_scale(network, branch) is not None:
        raise ConfigError(
            f"{branch.layer} is multiplied by a scale vector already; merge what the network was "
            "prepared with before preparing it again"
        )
    layer = network.get_submodule(branch.layer)
    suits = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if not suits or "weight" not in layer._parameters:  # a parametrised weight is computed
        raise ConfigError(
            "scale vectors go on linear layers and convolutions with a weight of their own; "
            f"{branch.layer} is a {type(layer).__name__}: leave its block out (blocks=none leaves "
            "out all), or choose another method"
        )


def held_scale(network: nn.Module, branch: Branch) -> Tensor | None:
    """The vector of a branch, (``branch.width``,); None where there is none."""
    owner, name = parent_of(network, scale_name(branch))
    gamma: Tensor | None = getattr(owner, name, None)
    return gamma


def remove_scale(network: nn.Module, branch: Branch) -> None:
    """Take a vector off, as if `add_scales` had never been called."""
    owner, name = parent_of(network, scale_name(branch))
    if branch.scale is not None:
        setattr(owner, name, None)
        return
    delattr(owner, name)
    hooks = owner._forward_hooks
    for number in [number for number, hook in hooks.items() if hook is _multiply]:
        del hooks[number]


def _multiply(layer: nn.Module, args: Any, out: Tensor) -> Tensor:
    """The hook; in the output's own type, which under autocast is not the vector's."""
    gamma: Tensor = getattr(layer, GAMMA).to(out.dtype)
    if isinstance(layer, nn.Linear):
        return out * gamma
    return out * gamma.reshape(-1, *[1] * len(layer.kernel_size))  # type: ignore[arg-type]  # a tuple
