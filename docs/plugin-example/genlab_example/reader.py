"""A reader: EDM networks in a safetensors file whose metadata hold the network's arguments."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from genlab import DiffusionGenerator
from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.weights import build_network, mentions, read_state_dict
from genlab.diffusion.preconditioning import EDM
from genlab.errors import CheckpointError, ConfigError
from genlab.networks import SongUNet

KEY = "example_unet"
"""Of the metadata; its value is JSON: ``{"img_resolution": 8, "in_channels": 1, ...}``."""


class ExampleReader:
    """Reads such files; see `genlab.checkpoints.readers.base.Reader`."""

    def recognises(self, source: Path, config: Config | None) -> bool:
        """The key stands in the head of the file."""
        return mentions(source, KEY)

    def read(self, source: Path, config: Config | None) -> DiffusionGenerator:
        """Read a network; nothing in the file is trusted before it is checked."""
        if config is not None:
            raise ConfigError(f"{source} holds its own arguments; leave the config out")
        state = read_state_dict(source)  # refuses what is damaged, in a sentence
        network = build_network(SongUNet, _arguments(source), state, f"{source} (SongUNet)")
        return DiffusionGenerator(network, EDM())


def _arguments(source: Path) -> dict[str, Any]:
    try:
        with safe_open(source, framework="pt") as file:
            arguments = json.loads(file.metadata()[KEY])
        if not all(_is_size(each) for each in arguments.values()):
            raise ValueError("more than sizes")
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{source} has no metadata {KEY!r} with sizes in JSON ({error}); give another file"
        ) from error
    return dict(arguments)


def _is_size(value: object) -> bool:
    if isinstance(value, list):
        return len(value) < 10 and all(_is_size(each) for each in value)
    return type(value) is int and 0 < value <= 1024
