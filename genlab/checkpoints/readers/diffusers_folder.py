"""Folders of diffusers, read without its loaders: configs are data, weights are tensors."""

import inspect
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from genlab.checkpoints.weights import StateDict, read_state_dict
from genlab.errors import CheckpointError
from genlab.files import read_json_object
from genlab.saving.models import read_config

WEIGHTS = "diffusion_pytorch_model"
MOST_LAYERS = 64
"""Of a kind, in a U-Net or autoencoder: building a million of them would take for ever."""

_COUNTS = ("layers_per_block", "num_encoder_blocks", "num_decoder_blocks")

_OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def class_of(folder: Path) -> str | None:
    """The class that the config.json in a folder names; None where there is none."""
    try:
        name = read_config(folder).get("_class_name")
    except CheckpointError:
        return None
    return name if isinstance(name, str) else None


def read_weights(folder: Path, *, pickled: bool = True) -> StateDict:
    """All tensors of a model in float32: safetensors or pickled ``.bin``, whole or in shards.

    Args:
        folder: with the weights.
        pickled: whether ``.bin`` is read, too.

    Raises:
        CheckpointError: there are none, a shard is missing, or a file is damaged or asks to run
            code.
    """
    for ending in (".safetensors", ".bin") if pickled else (".safetensors",):
        whole = folder / f"{WEIGHTS}{ending}"
        if whole.is_file():
            return _modern_names(read_state_dict(whole))
        index = folder / f"{WEIGHTS}{ending}.index.json"
        if index.is_file():
            return _modern_names(_read_shards(index))
    if (folder / f"{WEIGHTS}.bin").is_file():
        raise CheckpointError(
            f"{folder} holds its weights as a pickled {WEIGHTS}.bin, which is not read here; save "
            "the model as safetensors with diffusers where you trust the file"
        )
    raise CheckpointError(
        f"{folder} holds no weights: there is no {WEIGHTS}.safetensors; fetch the whole folder"
    )


def read_metadata(folder: Path) -> dict[str, str]:
    """The metadata of a model's weights: empty where they are pickled or in shards.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / f"{WEIGHTS}.safetensors"
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({str(error).rstrip('.')}); fetch or save it again"
        ) from error


def _read_shards(index: Path) -> StateDict:
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise CheckpointError(f"{index} has no weight_map; fetch it again")
    state: StateDict = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} points to {file!r}, outside its folder")
        state |= read_state_dict(index.parent / file)
    lost = sorted(set(places) - set(state))
    if lost:
        raise CheckpointError(f"the shards of {index} lack {lost[0]}; fetch them again")
    return state


def _modern_names(state: StateDict) -> StateDict:
    """Weights under today's names; attention layers had others before 2023."""
    renamed = {}
    for name, value in state.items():
        for old, new in _OLD_ATTENTION.items():
            if "attentions." in name:
                name = name.replace(old, new)
        renamed[name] = value
    return renamed


def known_options(cls: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a config that the constructor of a class of diffusers takes.

    Raises:
        CheckpointError: one claims more layers than any network has.
    """
    names = inspect.signature(cls.__init__).parameters
    options = {name: value for name, value in config.items() if name in names and name != "self"}
    for name, value in options.items():
        counts = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if name in _COUNTS else math.inf
        if len(counts) > MOST_LAYERS or any(isinstance(n, int) and n > most for n in counts):
            raise CheckpointError(
                f"the config of a {cls.__name__} claims {name} = {reprlib.repr(value)}, more than "
                "any network that GenLab reads has; fetch it again"
            )
    return options
