"""Reader of BigGAN-deep in Hugging Face's layout: DeepMind's released generators."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.readers.options import (
    Option,
    flag,
    integer,
    number,
    refuse_unknown,
    several,
    values_of,
)
from genlab.checkpoints.weights import StateDict, build_network, mentions, read_state_dict
from genlab.errors import ConfigError
from genlab.files import read_json_object
from genlab.generators.gan import GanGenerator
from genlab.networks.biggan_deep_hf import LAYERS_128, BigGANDeepHF

WEIGHTS_NAME, CONFIG_NAME = "pytorch_model.bin", "config.json"
"""How the official files' names end, for instance ``biggan-deep-128-pytorch_model.bin``."""


def _block(value: Any) -> tuple[bool, int, int]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError("(whether it doubles the resolution, width before, width after)")
    width = integer(1, 1024)
    try:
        return flag(value[0]), width(value[1]), width(value[2])
    except ValueError:
        raise ValueError("(true or false, width in 1 ... 1024, width in 1 ... 1024)") from None


# The upper ends are far beyond any published network; see `genlab.checkpoints.readers.options`.
_OPTIONS = {
    "output_dim": Option(128, integer(4, 8192)),
    "z_dim": Option(128, integer(1, 65536)),
    "class_embed_dim": Option(128, integer(1, 65536)),  # officially never read
    "channel_width": Option(128, integer(1, 4096)),
    "num_classes": Option(1000, integer(1, 1_000_000)),
    "layers": Option(list(LAYERS_128), several(_block, longest=64)),
    "attention_layer_position": Option(8, integer(0, 64)),
    "eps": Option(1e-4, number(0, 1)),
    "n_stats": Option(51, integer(2, 10_000)),
}


class BigGANDeepHFReader:
    """Reads the released generators; their config lies beside the weights or is given."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Hugging Face's own arguments or tensors."""
        if config is not None and "attention_layer_position" in config:
            return True
        return mentions(source, "generator.gen_z.weight_orig")

    def read(self, source: Path, config: Config | None) -> GanGenerator:
        """Read a checkpoint; see `genlab.checkpoints.readers.base.Reader`."""
        if config is None:
            config = _config_beside(source)
        return GanGenerator(generator_network(read_state_dict(source), config, str(source)))


def generator_network(
    weights: StateDict, config: Config, where: str = "the state dict"
) -> BigGANDeepHF:
    """Build a generator network from official weights.

    Args:
        weights: the official state dict.
        config: entries of the official ``BigGANConfig``; what is left out has its default, those of
            the generator for 128x128 pixels.
        where: the file, for messages.

    Raises:
        CheckpointError: weights and config do not fit each other.
        ConfigError: an entry is unknown or out of range.
    """
    refuse_unknown("BigGANConfig", config, _OPTIONS)
    official = values_of("BigGANConfig", _OPTIONS, config)
    arguments = {
        "img_resolution": official["output_dim"],
        "num_classes": official["num_classes"],
        "channels": official["channel_width"],
        "dim_z": official["z_dim"],
        "layers": official["layers"],
        "attention_position": official["attention_layer_position"],
        "eps": official["eps"],
        "num_stats": official["n_stats"],
    }
    return build_network(BigGANDeepHF, arguments, _own_names(weights), f"{where} (BigGAN-deep)")


def _config_beside(source: Path) -> dict[str, Any]:
    """The official config that belongs to a file of weights.

    Raises:
        ConfigError: there is none.
        CheckpointError: it cannot be read.
    """
    path = source.with_name(CONFIG_NAME)
    if source.name.endswith(WEIGHTS_NAME):
        path = source.with_name(source.name.removesuffix(WEIGHTS_NAME) + CONFIG_NAME)
    if not path.is_file():
        raise ConfigError(
            f"{source} needs its official config: put it beside the file as {path.name}, or give "
            "its entries as config"
        )
    return read_json_object(path)


_RENAMED: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^generator\.layers\.": "blocks.",
    r"^generator\.bn\.weight$": "bn.gain",
    r"^generator\.": "",
    r"\.snconv1x1_(o_conv|\w)": lambda match: f".{match[1].removesuffix('_conv')}",
    r"\.(bn|conv)_([0-3])\.": lambda match: f".{match[1]}{int(match[2]) + 1}.",
    r"\.scale\.": ".gain.",
    r"\.offset\.": ".bias.",
    r"\.weight_orig$": ".weight",
    r"\.weight_(u|v)$": r".\1",
}


def _own_names(weights: StateDict) -> dict[str, Tensor]:
    """Our names, and scalars without an axis."""
    renamed = {}
    for name, value in weights.items():
        own = name
        for pattern, replacement in _RENAMED.items():
            own = re.sub(pattern, replacement, own)
        scalar = own.endswith(".gamma") and value.shape == (1,)
        renamed[own] = value.reshape(()) if scalar else value
    return renamed
