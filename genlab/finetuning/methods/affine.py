"""Weight and bias for normalisations that have none, as official DiT's: put on and taken off."""

from typing import Any

import torch
from torch import Tensor, nn

from genlab.networks.layout import Layout

_ADDED = "added_affine"
"""Attribute of a normalisation that was given weight and bias; copies of it have it, too."""


def switch_on_affine(network: nn.Module, layout: Layout) -> list[str]:
    """Give normalisations without parameters a weight of 1 and a bias of 0.

    No bit of the output changes. Those that have parameters of their own are left as they are, as
    are kinds that cannot have any.

    Returns:
        Paths of those that were given parameters.
    """
    modulations = {each.norm: each.scale.layer for each in layout.modulated}
    first = next(network.parameters())
    switched = []
    for path in layout.norms:
        norm = network.get_submodule(path)
        shape = _parameter_shape(norm)
        if shape is None or any(True for _ in norm.parameters(recurse=False)):
            continue
        like = network.get_submodule(modulations[path]).weight if path in modulations else first
        assert isinstance(like, Tensor)
        options: Any = {"dtype": like.dtype, "device": like.device}
        norm.register_parameter("weight", nn.Parameter(torch.ones(shape, **options)))
        norm.register_parameter("bias", nn.Parameter(torch.zeros(shape, **options)))
        _mark(norm, True)
        switched.append(path)
    return switched


def switched_on(network: nn.Module, layout: Layout) -> list[str]:
    """Paths of the normalisations that `switch_on_affine` gave parameters."""
    return [path for path in layout.norms if getattr(network.get_submodule(path), _ADDED, False)]


def switch_off_affine(norm: nn.Module) -> None:
    """Remove the parameters that `switch_on_affine` added."""
    norm.register_parameter("weight", None)
    norm.register_parameter("bias", None)
    _mark(norm, False)


def _mark(norm: nn.Module, added: bool) -> None:
    setattr(norm, _ADDED, added)
    flag = "elementwise_affine" if isinstance(norm, nn.LayerNorm) else "affine"
    setattr(norm, flag, added)


def _parameter_shape(norm: nn.Module) -> tuple[int, ...] | None:
    """The shape of weight and bias; None for kinds that compute without them."""
    if isinstance(norm, nn.LayerNorm):
        return tuple(norm.normalized_shape)
    if isinstance(norm, nn.GroupNorm):
        return (norm.num_channels,)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return (norm.num_features,)
    return None
