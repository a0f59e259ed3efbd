"""Visual prompt tuning: learned tokens stand before those of the image, anew in every block."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.base import Method, train_only
from genlab.networks.layout import Layout

NAME = "prompts"
"""Name of a block's tokens, (tokens, width)."""


@dataclass(frozen=True, kw_only=True)
class VisualPrompts(Method):
    """Adds learned tokens to the input of every block, which takes them out of its output (VPT).

    Choose it to compare with, or where no layer may change: every evaluation pays for the longer
    sequence.

    Trains the tokens and the class table: with 50 tokens 1,730,304 numbers of a DiT-XL/2 with 101
    classes (0.26 %), 32,256 for each token more. At the start the output is not the base's, since
    the image's tokens attend to the new ones.

    Merging: impossible, the tokens are part of the input.

    Attributes:
        tokens: how many in each block, >= 1. Its paper tries 1 to 200 beside the 196 tokens of an
            image; compare with the tokens of yours.
        class_table: whether the class table trains, too.

    Source: Jia et al. 2022, arXiv:2203.12119, Sec. 3.2 (VPT-deep); the start as in its code.
    """

    tokens: int = 50
    class_table: bool = True

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"tokens must be at least 1, got {self.tokens}")

    @override
    def prepare(self, network: nn.Module) -> list[str]:
        """The output does not stay what it was.

        Raises:
            ConfigError: the blocks do not work on tokens, or they hold prompts already.
        """
        layout = layout_of(network)
        width = _token_width(network, layout)
        config: Any = network.config
        bound = math.sqrt(6 / (config.in_channels * config.patch_size**2 + width))
        names = []
        for path in layout.blocks:
            block = network.get_submodule(path)
            if hasattr(block, NAME):
                raise ConfigError("the network holds prompts already; prepare a plain network")
            like = next(block.parameters())
            prompts = like.new_empty(self.tokens, width).uniform_(-bound, bound)
            block.register_parameter(NAME, nn.Parameter(prompts))
            block.register_forward_pre_hook(_insert)
            block.register_forward_hook(_remove)
            names.append(f"{path}.{NAME}")
        if self.class_table:
            names += layout.groups["class"]
        return train_only(network, names, "VPT")

    @override
    def merge(self, network: nn.Module) -> nn.Module:
        """A plain network again: the architecture and the state-dict keys from before `prepare`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "prompts cannot be merged, since they are tokens beside those of the image; keep the "
            "adapter beside its base, or choose diffit or lora"
        )

    @override
    def notes(self, network: nn.Module) -> list[str]:
        return ["the output is not the base's at the start: images attend to the new tokens"]


def _token_width(network: nn.Module, layout: Layout) -> int:
    """Width of the tokens that all blocks map to tokens.

    Raises:
        ConfigError: they do not.
    """
    kinds = [
        {branch.kind for branch in layout.branches if branch.block == b} for b in layout.blocks
    ]
    ends = [network.get_submodule(branch.layer) for branch in layout.branches]
    transformer = kinds and all(each == {"attention", "mlp"} for each in kinds)
    if not transformer or not all(isinstance(layer, nn.Linear) for layer in ends):
        raise ConfigError(
            f"VPT needs a transformer, whose blocks work on tokens (DiT), which "
            f"{type(network).__name__} is not; choose another method"
        )
    return layout.branches[0].width


def _insert(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook: tokens (..., T, D) -> (..., tokens + T, D)."""
    x = args[0]  # the block comes as an argument, so that hooks of a copy take the copy's prompts
    prompts = block.get_parameter(NAME).to(x.dtype).expand(*x.shape[:-2], -1, -1)
    return torch.cat([prompts, x], dim=-2), *args[1:]


def _remove(block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    return out[..., len(block.get_parameter(NAME)) :, :]
