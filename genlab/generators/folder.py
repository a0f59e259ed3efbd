"""A generator on disk: a diffusers pipeline folder.

`genlab.load` and `GenLabPipeline.from_pretrained` both read it.

``model_index.json`` names the network's class and holds what the network itself does not know
(preconditioning, class names, default sampler); ``network/`` is what diffusers' ``save_pretrained``
writes: config.json and safetensors.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn

from genlab.errors import CheckpointError, GenLabError, OutputError
from genlab.files import make_public

INDEX = "model_index.json"
NETWORK = "network"
CARD = "README.md"
PIPELINE = "GenLabPipeline"

_OUR_NETWORKS = "genlab.networks."

_LOADING = Lock()
"""diffusers changes how torch makes parameters while it loads: one thread at a time, then."""


def write_folder(
    folder: Path, network: nn.Module, facts: Mapping[str, Any], card: str | None = None
) -> None:
    """Write a generator; the folder changes only once everything is on the disk.

    Args:
        folder: may exist, with an older generator or other files in it.
        network: a diffusers ``ModelMixin``.
        facts: the pipeline's other constructor arguments.
        card: text of the model card (README.md), which hubs show.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    cls = type(network)
    index = {
        "_class_name": PIPELINE,
        "_diffusers_version": diffusers.__version__,
        NETWORK: [cls.__module__, cls.__name__],
        **facts,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            new = Path(name) / "new"
            network.save_pretrained(new / NETWORK)  # type: ignore[operator]  # a ModelMixin's method
            _forget_origin(new / NETWORK / "config.json")
            (new / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
            if card is not None:
                (new / CARD).write_text(card)
            for weights in (new / NETWORK).glob("*.safetensors"):
                make_public(weights)
            _move_into(new, folder)
    except GenLabError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the model to {folder}: {getattr(error, 'strerror', None) or error}"
        ) from error


def _forget_origin(config: Path) -> None:
    """Take the path that the weights were once read from out of the network's config."""
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _move_into(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    weights = [p.name for p in (new / NETWORK).iterdir()]
    (folder / NETWORK).mkdir(exist_ok=True)
    for path in sorted(new.rglob("*"), key=lambda p: (p.name == INDEX, p)):
        if path.is_file():
            path.replace(folder / path.relative_to(new))
    # Shards of an older, larger network would be read in preference to ours.
    for old in (folder / NETWORK).glob("diffusion_pytorch_model*"):
        if old.name not in weights:
            old.unlink()


def read_index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says.

    Raises:
        CheckpointError: it is missing or is not a JSON object.
    """
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no model folder: it has no {INDEX}; check the path, "
            "or make one with genlab convert"
        )
    try:
        index = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); save the model again") from error
    if not isinstance(index, dict) or not _is_component(index.get(NETWORK)):
        raise CheckpointError(
            f"{path} names no network; GenLab reads folders of its own pipeline, {PIPELINE}"
        )
    return index


def _is_component(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def read_network(
    folder: Path, index: Mapping[str, Any], dtype: torch.dtype | None = None
) -> ModelMixin:
    """Build the network that the index names and fill it with the folder's weights, all of them.

    Raises:
        CheckpointError: an unknown class, or weights that are missing, cut short or of other
            shapes.
    """
    cls = _network_class(folder, *index[NETWORK])
    where = folder / NETWORK
    try:
        with _LOADING:
            loaded: Any = cls.from_pretrained(
                where,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=dtype,
            )
            network, info = loaded
    except GenLabError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the network in {where} cannot be read, a file is missing, cut short or does not fit "
            f"its config.json ({reason[:300]}); fetch or save the model again"
        ) from error
    # diffusers only logs these and samples from random weights.
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise CheckpointError(
                f"the weights in {where} do not fit its config.json: {what.replace('_', ' ')} "
                f"such as {sorted(map(str, info[what]))[0]}; fetch or save the model again"
            )
    _realign(network)
    return network.eval()


def _realign(network: nn.Module) -> None:
    """Copy weights out of the mapped file, where they begin anywhere.

    Matrix libraries round differently when memory is not aligned: without this a loaded model's
    images would differ in the last bits from those of the model that was saved.
    """
    for tensor in [*network.parameters(), *network.buffers()]:
        tensor.data = tensor.data.clone()


def _network_class(folder: Path, module: str, name: str) -> type[ModelMixin]:
    """The class that the index names: one of ours, or of a module that the program imported.

    Importing a module because a downloaded file names it would run its code.
    """
    if module.startswith(_OUR_NETWORKS):
        try:
            found = import_module(module)
        except ImportError as error:
            raise CheckpointError(
                f"{folder / INDEX} names the module {module}, which this version of "
                "GenLab lacks; update GenLab"
            ) from error
    elif module in sys.modules:
        found = sys.modules[module]
    else:
        raise CheckpointError(
            f"{folder / INDEX} names the network {module}.{name}, which is not GenLab's; "
            f"if you trust it, import {module} before loading"
        )
    cls = getattr(found, name, None)
    if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
        raise CheckpointError(f"{folder / INDEX}: {module} has no network {name}")
    return cls


def read_card(folder: Path) -> str | None:
    """The model card, where there is one."""
    path = folder / CARD
    return path.read_text() if path.is_file() else None
