"""Names and shapes of diffusers' DiTTransformer2DModel, from there to ours and back."""

import re
from typing import Any

import torch
from torch import Tensor

from genlab.checkpoints.readers.options import Option, integer, number, values_of
from genlab.checkpoints.weights import StateDict
from genlab.errors import CheckpointError, ConfigError
from genlab.networks.diffusers_dit import DiffusersDiT
from genlab.networks.dit import EPS, DiT

# Ours -> theirs, below a block.
_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
_EMBEDDERS = {
    "t_embedders.{}.mlp.0": "timestep_embedder.linear_1",
    "t_embedders.{}.mlp.2": "timestep_embedder.linear_2",
    "y_embedders.{}.embedding_table": "class_embedder.embedding_table",
}
_OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
# Theirs, where only one value is ours.
_FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "dropout": 0.0,
    "upcast_attention": False,
}
_OPTIONS = {
    "num_attention_heads": Option(None, integer(1, 1024)),
    "attention_head_dim": Option(None, integer(1, 65536)),
    "num_layers": Option(None, integer(1, 1024)),
    "in_channels": Option(None, integer(1, 1024)),
    "sample_size": Option(None, integer(1, 8192)),
    "patch_size": Option(None, integer(1, 1024)),
    "num_embeds_ada_norm": Option(None, integer(1, 1_000_000)),
    "norm_eps": Option(1e-5, number(0, 1)),
}
_LARGEST_GRID = 256
"""Patches a side; only the claim tells them, since the position table is not in the weights."""


def options_of(config: dict[str, Any], state: StateDict, where: object) -> dict[str, Any]:
    """The arguments of `DiffusersDiT` that a config of DiTTransformer2DModel means.

    Raises:
        CheckpointError: it means another network, or not that of the weights.
    """
    for option, ours in _FIXED.items():
        if config.get(option, ours) != ours:
            raise CheckpointError(
                f"{where} has {option} = {config[option]!r}; GenLab reads DiTs with {ours!r}"
            )
    settings = {name: value for name, value in config.items() if value is not None}
    outputs = Option(settings.get("in_channels"), integer(1, 2048))
    try:
        values = values_of("DiTTransformer2DModel", {**_OPTIONS, "out_channels": outputs}, settings)
    except ConfigError as error:
        raise CheckpointError(f"the config of {where} is no DiT's: {error}") from error
    if not 1 <= values["sample_size"] // values["patch_size"] <= _LARGEST_GRID:
        raise CheckpointError(
            f"the config of {where} claims sample_size = {values['sample_size']} in patches of "
            f"{values['patch_size']}; GenLab reads DiTs of 1 ... {_LARGEST_GRID} patches a side"
        )
    depth = values["num_layers"]
    held = len({name.split(".")[1] for name in state if name.startswith("transformer_blocks.")})
    if depth != held:  # before as many blocks are built
        raise CheckpointError(
            f"the config of {where} says num_layers = {depth}, its weights are of {held} blocks"
        )
    return {
        "img_resolution": values["sample_size"],
        "in_channels": values["in_channels"],
        "out_channels": values["out_channels"],
        "label_dim": values["num_embeds_ada_norm"],
        "patch_size": values["patch_size"],
        "hidden_size": values["num_attention_heads"] * values["attention_head_dim"],
        "depth": depth,
        "num_heads": values["num_attention_heads"],
        "norm_eps": values["norm_eps"],
    }


def from_diffusers(state: StateDict) -> StateDict:
    """Their state dict under our names; names that are not theirs stay."""
    converted: StateDict = {}
    for name, value in state.items():
        if re.search(r"attn1\.to_[qkv]\.", name) is None:
            converted[_our_name(name)] = value
    queries = [name for name in state if ".attn1.to_q." in name]
    for name in queries:
        parts = [state.get(name.replace(".to_q.", f".to_{role}.")) for role in "qkv"]
        number, _, kind = name.removeprefix("transformer_blocks.").split(".", 2)
        present = [part for part in parts if part is not None]
        converted[f"blocks.{number}.attn.qkv.{kind.rpartition('.')[2]}"] = torch.cat(present)
    return converted


def _our_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    for ours, theirs in _OUTSIDE.items():
        if stem == theirs:
            return f"{ours}.{kind}"
    block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem)
    if block is None:
        return name
    number, inside = block.groups()
    for ours, theirs in _BLOCK.items():
        if inside == theirs:
            return f"blocks.{number}.{ours}.{kind}"
    for ours, theirs in _EMBEDDERS.items():
        if inside == f"norm1.emb.{theirs}":
            return f"{ours.format(number)}.{kind}"
    return name


def to_diffusers(network: DiT | DiffusersDiT) -> tuple[dict[str, Any], StateDict]:
    """Config and state dict of the DiTTransformer2DModel with a network's weights.

    Raises:
        ConfigError: that class cannot express the network.
    """
    config: Any = network.config
    _check_expressible(network)
    depth = len(network.blocks)
    state: StateDict = {}
    for name, value in network.state_dict().items():
        for theirs in _their_names(name, depth):
            state[theirs] = value
        if ".attn.qkv." in name:
            number, kind = name.split(".")[1], name.rpartition(".")[2]
            for role, part in zip("qkv", value.chunk(3), strict=True):
                state[f"transformer_blocks.{number}.attn1.to_{role}.{kind}"] = part.contiguous()
    their_config = {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": depth,
        "sample_size": config.img_resolution,
        "patch_size": config.patch_size,
        "num_embeds_ada_norm": network.label_dim,
        "norm_eps": getattr(config, "norm_eps", EPS),
        **_FIXED,
    }
    return their_config, {name: value.clone() for name, value in state.items()}


def _their_names(name: str, depth: int) -> list[str]:
    """Where a weight of ours stands there: an embedder of DiT's stands in every block."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return [f"{_OUTSIDE[stem]}.{kind}"]
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    if block is not None and block[2] in _BLOCK:
        return [f"transformer_blocks.{block[1]}.{_BLOCK[block[2]]}.{kind}"]
    embedder = re.fullmatch(r"([ty])_embedder(s?)\.(?:(\d+)\.)?(.+)", stem)
    if embedder is None:
        return []
    letter, several, number, rest = embedder.groups()
    theirs = _EMBEDDERS[f"{letter}_embedders.{{}}.{rest}"]
    numbers = [number] if several else range(depth)
    return [f"transformer_blocks.{i}.norm1.emb.{theirs}.{kind}" for i in numbers]


def _check_expressible(network: DiT | DiffusersDiT) -> None:
    config: Any = network.config
    if isinstance(network, DiffusersDiT):
        return
    resolution = config.position_resolution or config.img_resolution
    plain = config.num_streams == 1 and not config.augment_dim and config.mlp_ratio == 4
    if not (plain and resolution == config.img_resolution and network.label_dim):
        raise ConfigError(
            "diffusers' DiTTransformer2DModel has no hyper-connections, augmentation labels, other "
            "position ranges, other mlp_ratio than 4, and always classes; this DiT cannot be "
            "written as one"
        )
    if not network.null_class:
        raise ConfigError(
            "diffusers' DiTTransformer2DModel always has a null class; this DiT has none"
        )


def as_plain(state: StateDict) -> StateDict | None:
    """The state dict of a plain `DiT`, where every block has the same embedders; else None."""
    plain: StateDict = {}
    for name, value in state.items():
        match = re.fullmatch(r"([ty]_embedder)s\.\d+\.(.+)", name)
        short = name if match is None else f"{match[1]}.{match[2]}"
        if match is not None and not _same(plain.setdefault(short, value), value):
            return None
        plain[short] = value
    return plain


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b)
