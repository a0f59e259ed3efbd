"""Fold the parameters that fine-tuning added into the weights, so that they cost nothing more.

A scale vector goes into the layer whose output it multiplies:

    gamma (W h + b) = (diag(gamma) W) h + gamma b.

Weight w and bias v of a normalisation that the condition scales and shifts go into what it says:

    (w x + v) (1 + scale) + shift = x (1 + scale') + shift'
    scale' = w (1 + scale) - 1,  shift' = v (1 + scale) + shift,

which is linear in ``scale`` and ``shift``, so that rows of the layer that gives these take it in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genlab.compute import widest
from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.affine import switch_off_affine, switched_on
from genlab.finetuning.methods.scales import held_scale, remove_scale
from genlab.networks.layout import ModulatedNorm, Rows


@torch.no_grad()
def fold(network: nn.Module) -> nn.Module:
    """Make a network plain again: scale vectors and added affine parameters go into its weights.

    The weights that take them in are replaced, never written to, since another network may share
    them. A network to which nothing was added stays as it is.

    Returns:
        The same network, whose output differs by rounding only.

    Raises:
        ConfigError: a normalisation was given parameters that no other weight can take in; the
            network is unchanged.
    """
    layout = layout_of(network)
    added = switched_on(network, layout)
    modulated = {each.norm: each for each in layout.modulated}
    for path in added:
        _check_foldable(network, path, modulated.get(path))
    for path in added:
        norm = network.get_submodule(path)
        _fold_affine(network, modulated[path], norm.get_parameter("weight"), norm.bias)  # type: ignore[arg-type]  # a parameter
        switch_off_affine(norm)
    for branch in layout.branches:
        gamma = held_scale(network, branch)
        if gamma is not None:
            _fold_scale(network.get_submodule(branch.layer), gamma)
            remove_scale(network, branch)
    return network


def _fold_scale(layer: nn.Module, gamma: Tensor) -> None:
    weights = _Weights.of(layer)
    gamma = gamma.to(weights.weight)
    bias = None if weights.bias is None else gamma * weights.bias
    weights.replace(layer, _rows(gamma, weights.weight) * weights.weight, bias)


def _fold_affine(network: nn.Module, modulated: ModulatedNorm, w: Tensor, v: Tensor) -> None:
    """Weight ``w`` and bias ``v``, (D,) each, into the modulation's rows for scale and shift."""
    layer = network.get_submodule(modulated.scale.layer)
    weights = _Weights.of(layer)
    assert weights.bias is not None
    weight, bias = weights.weight.clone(), weights.bias.clone()
    w, v = w.to(weight), v.to(weight)
    scale, shift = _slice(modulated.scale), _slice(modulated.shift)
    weight[shift] += _rows(v, weight) * weight[scale]
    bias[shift] += v * (1 + bias[scale])
    weight[scale] *= _rows(w, weight)
    bias[scale] = w * (1 + bias[scale]) - 1
    weights.replace(layer, weight, bias)


def _check_foldable(network: nn.Module, path: str, modulated: ModulatedNorm | None) -> None:
    if modulated is None:
        raise ConfigError(
            f"{path} was given weight and bias, and no modulation stands behind it that could take "
            "them in, so this network cannot be merged; use it with its adapter as it is"
        )
    layer = network.get_submodule(modulated.scale.layer)
    if modulated.shift.layer != modulated.scale.layer or getattr(layer, "bias", None) is None:
        raise ConfigError(
            f"weight and bias of {path} can only go into one modulation layer with biases, which "
            f"{modulated.scale.layer} is not, so this network cannot be merged; use it with its "
            "adapter as it is"
        )


def _slice(rows: Rows) -> slice:
    return slice(rows.start, rows.stop)


def _rows(vector: Tensor, weight: Tensor) -> Tensor:
    """A vector that multiplies the rows of a weight."""
    return vector.reshape(-1, *[1] * (weight.dim() - 1))


@dataclass(frozen=True)
class _Weights:
    """A layer's weight and bias in the widest type, for sums that are rounded once."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Module) -> "_Weights":
        dtype = widest(layer.get_parameter("weight").device)
        bias = layer.get_parameter("bias").to(dtype) if layer.bias is not None else None
        return cls(layer.get_parameter("weight").to(dtype), bias)

    def replace(self, layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        """Put other numbers in a layer, in the layer's type and memory format."""
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                old = layer.get_parameter(name)
                new = torch.empty_like(old).copy_(value)
                layer.register_parameter(name, nn.Parameter(new, old.requires_grad))
