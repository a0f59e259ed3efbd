"""Bottleneck adapters: a narrow network of two layers beside, or behind, a residual branch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.base import Method, check_blocks, choose_blocks, train_only
from genlab.networks.autoregressive import AutoregressiveNetwork
from genlab.networks.layout import Branch, Layout

Activation = Literal["relu", "gelu", "silu"]

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}

NAME = "adapter"
"""Name of an adapter in the module that it is added to."""

KINDS: Mapping[int, type[nn.Linear | nn.Conv1d | nn.Conv2d]] = {
    2: nn.Linear,
    3: nn.Conv1d,
    4: nn.Conv2d,
}
"""Dimensions of the weight that ends a branch -> what the layers of its adapter are."""


@dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(Method):
    """Adds a small network of two layers, narrow between them, to the blocks.

    Choose it where an adapter may stay beside the network for good, and should have a nonlinearity
    of its own. Every evaluation pays for it.

    Trains the adapters and the class table: 4,280,320 numbers of a DiT-XL/2 with 101 classes
    (0.64 %) with one adapter of 64 features in each block. An adapter adds nothing at the start,
    since its second layer begins at zero.

    Merging: impossible, an adapter is no linear part of a layer.

    Attributes:
        placement: "parallel": an adapter reads what its branch reads, and its output is added to
            the branch's. "sequential": it reads the branch's output and is added to that. Where a
            branch ends with a convolution (U-Nets, BigGAN), "parallel" is beside that convolution
            alone, since such a branch changes the size of images or the number of channels.
        bottleneck: features between the two layers, >= 1.
        per: one adapter in each "block", on its MLP or else its first branch; or on each "branch".
        blocks: "all", "half" (the first half, rounded up), or a list of numbers from 0.
        activation: between the layers.
        scale: factor on the adapter's output, > 0; AdaptFormer takes 0.1. With Adam it acts as a
            factor on the learning rate of the second layer.
        class_table: whether the class table trains, too.

    Source: Houlsby et al. 2019, arXiv:1902.00751 (sequential); He et al. 2022, arXiv:2110.04366
    (parallel); Chen et al. 2022, AdaptFormer, arXiv:2205.13535 (parallel to the MLP, the
    layers' start); Chen et al. 2022, Conv-Adapter, arXiv:2208.07463 (convolutions).
    """

    placement: Literal["parallel", "sequential"] = "parallel"
    bottleneck: int = 64
    per: Literal["block", "branch"] = "block"
    blocks: Any = "all"
    activation: Activation = "relu"
    scale: float = 1.0
    class_table: bool = True

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        if self.blocks == "none":
            raise ConfigError("blocks=none leaves no adapter; choose all, half or some numbers")
        if self.bottleneck < 1:
            raise ConfigError(f"bottleneck must be at least 1, got {self.bottleneck}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ConfigError(f"scale must be above 0, got {self.scale}")

    @override
    def prepare(self, network: nn.Module) -> list[str]:
        """Add what the method adds, and let only what trains have gradients.

        Raises:
            ConfigError: there is no such block, the chosen blocks have no branch that takes an
                adapter, or they hold adapters already.
        """
        if isinstance(network, AutoregressiveNetwork):
            raise ConfigError(
                f"{type(network).__name__} cannot have adapters, since it decodes pixel by pixel "
                "with the matrices of its layers; choose class-table, bitfit or full"
            )
        layout = layout_of(network)
        names: list[str] = []
        for branch in self._chosen(network, layout):
            path, adapter = self._adapter(network, branch)
            host = network.get_submodule(path)
            if hasattr(host, NAME):
                raise ConfigError(f"{path} holds an adapter already; prepare a plain network")
            host.add_module(NAME, adapter.train(host.training))
            host.register_forward_hook(_beside if self.placement == "parallel" else _behind)
            names += [f"{path}.{NAME}.{name}" for name, _ in adapter.named_parameters()]
        if self.class_table:
            names += layout.groups["class"]
        return train_only(network, names, "an adapter")

    @override
    def merge(self, network: nn.Module) -> nn.Module:
        """A plain network again: the architecture and the state-dict keys from before `prepare`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "bottleneck adapters cannot be merged, since a nonlinearity stands between their "
            "layers; keep the adapter beside its base, or choose diffit or lora"
        )

    def _chosen(self, network: nn.Module, layout: Layout) -> list[Branch]:
        chosen: list[Branch] = []
        for number in choose_blocks(self.blocks, len(layout.blocks)):
            branches = [each for each in layout.branches if each.block == layout.blocks[number]]
            if self.per == "block":
                branches = ([b for b in branches if b.kind == "mlp"] or branches)[:1]
            chosen += branches
        if not chosen:
            raise ConfigError(
                f"adapters have no place in {type(network).__name__}, whose chosen blocks have no "
                "residual branches; choose other blocks or another method"
            )
        return chosen

    def _adapter(self, network: nn.Module, branch: Branch) -> tuple[str, "Bottleneck"]:
        """Path of the module whose input or output the adapter reads, and a new adapter."""
        layer: Any = network.get_submodule(branch.layer)
        weight: Tensor = layer.weight
        kind = KINDS.get(weight.dim())
        one = (1,) * (weight.dim() - 2)
        keeps_size = tuple(getattr(layer, "stride", one)) == one
        if kind is None or not keeps_size or getattr(layer, "transposed", False):
            raise ConfigError(
                f"no adapter can be added to {branch.layer}, a {type(layer).__name__}; choose "
                "another method"
            )
        path, width = branch.layer, weight.shape[1]
        inside = branch.layer.removeprefix(f"{branch.block}.")
        if self.placement == "sequential":
            width = branch.width
        elif kind is nn.Linear and "." in inside and branch.layer != branch.block:
            module = f"{branch.block}.{inside.partition('.')[0]}"
            if not isinstance(network.get_submodule(module), nn.Sequential | nn.ModuleList):
                path, width = module, branch.width  # a residual branch is as wide as its input
        return path, Bottleneck(width, branch.width, kind, weight, self)


class Bottleneck(nn.Module):
    """Down to a few features, a nonlinearity, and up again.

    Args:
        in_channels: of what it reads.
        out_channels: of what it is added to.
        kind: of its two layers; kernels have the size 1.
        like: a tensor whose device and type they take over.
        options: the method.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kind: type[nn.Linear | nn.Conv1d | nn.Conv2d],
        like: Tensor,
        options: BottleneckAdapter,
    ) -> None:
        super().__init__()
        kernel = {} if kind is nn.Linear else {"kernel_size": 1}
        layer: Any = kind
        make = partial(layer, **kernel, device=like.device, dtype=like.dtype)
        self.down = make(in_channels, options.bottleneck)
        self.up = make(options.bottleneck, out_channels)
        self.activation = ACTIVATIONS[options.activation]
        self.scale = options.scale
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Float[Tensor, "*inside"]) -> Float[Tensor, "*outside"]:
        """The same shape, but for the channels."""
        out: Tensor = self.up(self.activation(self.down(x)))
        return out if self.scale == 1 else self.scale * out


def _beside(host: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    """A forward hook: it takes the adapter from its host, so that copies of both stay together."""
    added: Tensor = host.get_submodule(NAME)(args[0])
    return out + added


def _behind(host: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    added: Tensor = host.get_submodule(NAME)(out)
    return out + added
