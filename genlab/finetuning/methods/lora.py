"""LoRA: a product of two thin matrices is added to the weight of chosen layers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from typing_extensions import override

from genlab.errors import ConfigError, nearest
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.methods.peft_method import (
    ThroughPeft,
    ending_with,
    exact_targets,
    layer_names,
    load_peft,
    table_paths,
)
from genlab.networks.layout import LINEAR_LAYERS, paths_of

GROUPS = ("attention", "mlp", "convolution", "modulation", "last")
"""Groups of a layout whose layers may be named as one."""

WORDS = ("qkv", *GROUPS, "all")


@dataclass(frozen=True, kw_only=True)
class LoRA(ThroughPeft):
    """Adds ``alpha / r`` times the product of two matrices of rank ``r`` to chosen weights.

    Choose it to share an adapter with people who use peft, or where the number of parameters is to
    be a choice: ``r`` and ``targets`` say how many.

    Trains the matrices and the class table: on the queries, keys and values of a DiT-XL/2 with 101
    classes 1,149,696 numbers at rank 8 and 2,181,888 at rank 16; with ``targets=attention``
    1,665,792 and 3,214,080. Queries, keys and values are one layer in GenLab's networks, so they
    share the first matrix: adapters with one for each do not convert at the same rank.

    Merging: peft adds the product to the weights.

    Attributes:
        r: rank of the products, >= 1.
        alpha: scale of the products, over ``r``; null is ``r``, a scale of 1.
        targets: which layers. "qkv": those that make queries, keys and values. "attention", "mlp",
            "convolution", "modulation", "last": all linear layers and convolutions of that group.
            "all": all of those in blocks, the modulation's included. Or paths or ends of paths as
            in peft's ``target_modules``, such as attn.qkv. Or a list of such words.
        dropout: probability of dropping an input of the products in training, 0 <= p < 1.
        rslora: divide ``alpha`` by the square root of ``r`` instead, for high ranks.
        dora: train the length of every row of a weight apart from its direction. In half precision
            the output at the start is the base's but for rounding.
        rank_pattern: layer -> another ``r``; a name stands for all layers that end with it.
        alpha_pattern: layer -> another ``alpha``.
        class_table: whether the class table trains, too, in a copy of its own.

    Source: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; DoRA:
    Liu et al. 2024, arXiv:2402.09353; by the library peft.
    """

    r: int = 8
    alpha: int | None = None
    targets: Any = "qkv"
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    class_table: bool = True

    def __post_init__(self) -> None:
        numbers = {"r": self.r, "alpha": 1 if self.alpha is None else self.alpha}
        for pattern in ("rank_pattern", "alpha_pattern"):
            numbers |= {f"{pattern}.{key}": v for key, v in getattr(self, pattern).items()}
        for name, number in numbers.items():
            if number < 1:
                raise ConfigError(f"{name} must be at least 1, got {number}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        listed = isinstance(self.targets, Sequence) and len(self.targets) > 0
        if not listed or not all(isinstance(word, str) and word for word in self._words):
            raise ConfigError(
                f"targets={self.targets!r}: write one of {', '.join(WORDS)}, the end of a layer's "
                "path such as attn.qkv, or a list of such words"
            )

    @override
    def peft_config(self, network: nn.Module) -> Any:
        paths = self.target_paths(network)
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            if not any(re.match(rf"(.*\.)?({pattern})$", path) for path in paths):  # as peft does
                raise ConfigError(
                    f"the pattern {pattern!r} is no layer that LoRA adapts here; "
                    f"{nearest(pattern, layer_names(network))}"
                )
        tables = table_paths(network) if self.class_table else []
        return load_peft().LoraConfig(
            r=self.r,
            lora_alpha=self.r if self.alpha is None else self.alpha,
            target_modules=exact_targets(network, paths),
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            modules_to_save=tables or None,
        )

    def target_paths(self, network: nn.Module) -> list[str]:
        """Paths of the layers that `targets` means, in the network's order.

        Raises:
            ConfigError: a word means no layer, or layers of two kinds.
        """
        chosen = {path for word in self._words for path in self._layers(network, word)}
        return [path for path, _ in network.named_modules() if path in chosen]

    @property
    def _words(self) -> Sequence[Any]:
        return [self.targets] if isinstance(self.targets, str) else list(self.targets)

    def _layers(self, network: nn.Module, word: str) -> list[str]:
        layout = layout_of(network)
        tables = {table.layer for table in layout.tables}
        layers = {  # in the network's order
            path: module
            for path, module in network.named_modules()
            if path not in tables and isinstance(module, LINEAR_LAYERS)
        }
        if word in WORDS:
            ends = {branch.layer for branch in layout.branches}
            if word == "all":
                matched = [
                    p for p in layers if any(p == b or p.startswith(f"{b}.") for b in layout.blocks)
                ]
            else:
                members = layout.groups["attention" if word == "qkv" else word]
                owners = {name.rpartition(".")[0] for name in members}
                matched = [p for p in layers if p in owners and not (word == "qkv" and p in ends)]
            if not matched:
                raise ConfigError(
                    f"targets={word}: {type(network).__name__} has no such layers; its layers are "
                    f"called {', '.join(layer_names(network))}"
                )
            return matched
        matched = ending_with(word, [*layers, *paths_of(network, nn.Embedding)])
        if not matched:
            raise ConfigError(
                f"targets: no layer of {type(network).__name__} is called {word!r}; "
                f"{nearest(word, [*WORDS, *layer_names(network)])}"
            )
        if self.class_table and tables & set(matched):
            raise ConfigError(
                f"targets: {word} is the class table, which trains whole; to adapt it instead, "
                "write class_table=false"
            )
        linear = [isinstance(network.get_submodule(path), nn.Linear) for path in matched]
        if any(linear) and not all(linear):
            others = [path for path, each in zip(matched, linear, strict=True) if not each]
            raise ConfigError(
                f"targets: {word!r} means {others[0]}, too, which is no linear layer; write more "
                f"of the path, such as {matched[linear.index(True)]}"
            )
        return matched
