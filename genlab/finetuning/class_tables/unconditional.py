"""Networks without classes made of networks with classes: a constant class becomes part of biases.

What a network adds for a class that never changes is a constant vector, and a layer before or
behind that sum has a bias to take it. So the network without classes draws what the other one draws
for that class, up to rounding; nothing is lost of what it learned without a class.

Legend: K classes, E features of the class embedding.
"""

from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlab import compute
from genlab.errors import ConfigError
from genlab.networks import ADMUNet, DhariwalUNet, DiT, GatedPixelCNN, PixelCNNPP, SongUNet
from genlab.networks.diffusers_unet import DiffusersUNet
from genlab.networks.gated_pixelcnn import GatedLayer
from genlab.networks.layers.pixelcnnpp_blocks import GatedResnet

Weights = Float[Tensor, "1 K"] | None


@singledispatch
def absorb(network: nn.Module, base: nn.Module, weights: Weights) -> None:
    """Put what ``base`` adds for a class into biases of ``network``, which become its own.

    Args:
        network: the same without classes; it shares the tensors of ``base``.
        base: with classes.
        weights: of the classes whose mixture becomes the constant; None takes the null class.

    Raises:
        ConfigError: networks of this class cannot do without classes.
    """
    check(type(network))


def check(kind: type[nn.Module]) -> None:
    """Refuse a class of networks that cannot do without classes.

    Raises:
        ConfigError: tells the way out.
    """
    if absorb.dispatch(kind) is absorb.dispatch(object):
        raise ConfigError(
            f"a {kind.__name__} always has classes; give images without any one class in common "
            "(one name, or 1)"
        )


@absorb.register
def _(network: DiT, base: DiT, weights: Weights) -> None:
    _add(network.t_embedder.mlp[2], _embedding(base, weights))


@absorb.register
def _(network: SongUNet, base: SongUNet, weights: Weights) -> None:
    # The sum with the noise features goes through this layer.
    layer = network.map_layer0
    _add(layer, _apply(layer.weight, _embedding(base, weights)))


@absorb.register
def _(network: DhariwalUNet, base: DhariwalUNet, weights: Weights) -> None:
    if weights is not None:  # the null class adds nothing
        _add(network.map_layer1, _embedding(base, weights))


@absorb.register
def _(network: ADMUNet, base: ADMUNet, weights: Weights) -> None:
    if weights is not None:
        _add(network.time_embed[2], _embedding(base, weights))


@absorb.register
def _(network: DiffusersUNet, base: DiffusersUNet, weights: Weights) -> None:
    if weights is not None:
        _add(network.unet.time_embedding.linear_2, _embedding(base, weights))


@absorb.register
def _(network: PixelCNNPP, base: PixelCNNPP, weights: Weights) -> None:
    if weights is not None:
        for path, block in network.named_modules():
            if isinstance(block, GatedResnet):
                _add(block.conv_out.conv, _mixture(base, f"{path}.class_embedding", weights))


@absorb.register
def _(network: GatedPixelCNN, base: GatedPixelCNN, weights: Weights) -> None:
    if weights is None:
        return
    for path, layer in network.named_modules():
        if not isinstance(layer, GatedLayer):
            continue
        vector = _mixture(base, f"{path}.class_cond_embedding", weights)
        # Added to both stacks. The vertical one enters the horizontal one before its own is added,
        # so that what comes in with it is taken off again.
        across = _apply(layer.vert_to_horiz.weight[:, :, 0, 0], vector)
        _add(layer.vert_stack, vector)
        _add(layer.horiz_stack, vector - across)


def _embedding(base: DiT | SongUNet | DhariwalUNet | ADMUNet | DiffusersUNet, w: Weights) -> Tensor:
    embedding = base.embed_labels(w)
    assert embedding is not None
    return embedding[0]


def _mixture(base: nn.Module, table: str, weights: Float[Tensor, "1 K"]) -> Float[Tensor, " E"]:
    module = base.get_submodule(table)
    rows: Tensor = module(torch.arange(weights.shape[1], device=weights.device))
    wide = compute.widest(rows.device)
    return (weights[0].to(wide) @ rows.to(wide)).to(rows.dtype)


def _apply(weight: Tensor, vector: Tensor) -> Tensor:
    wide = compute.widest(vector.device)
    return (weight.to(wide) @ vector.to(wide)).to(vector.dtype)


def _add(layer: nn.Module, vector: Tensor) -> None:
    bias = layer.bias
    assert isinstance(bias, nn.Parameter)
    layer.bias = nn.Parameter((bias + vector).detach(), bias.requires_grad)
