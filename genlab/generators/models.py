"""diffusers' models at rest: one model, one folder with config.json and safetensors."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import Tensor, nn

from genlab.errors import CheckpointError, GenLabError
from genlab.files import make_public, read_json_object

MODEL_CONFIG = "config.json"

_LOADING = Lock()
"""diffusers changes how torch makes parameters while it loads: one thread at a time, then."""


def read_config(folder: Path) -> dict[str, Any]:
    """What a model's config.json says.

    Raises:
        CheckpointError: it is missing or is not a JSON object.
    """
    path = folder / MODEL_CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no model of diffusers: it has no {MODEL_CONFIG}; check the path"
        )
    return read_json_object(path)


def model_class(folder: Path, classes: Mapping[str, type[Any]]) -> type[Any]:
    """The class that a model's config names, if it is one of ``classes``.

    Raises:
        CheckpointError: it names another; a file never chooses what is imported.
    """
    name = read_config(folder).get("_class_name")
    if not isinstance(name, str) or name not in classes:
        raise CheckpointError(
            f"{folder / MODEL_CONFIG} names the class {name!r}; wanted is one of "
            f"{', '.join(classes)}"
        )
    return classes[name]


def read_model(
    folder: Path, cls: type[Any], dtype: torch.dtype | None = None, what: str = "model"
) -> Any:
    """Build a model and fill it with the folder's weights, all of them.

    Args:
        folder: with config.json and safetensors, as ``save_pretrained`` writes it.
        cls: a diffusers ``ModelMixin``.
        dtype: of the weights; None keeps float32.
        what: the model's part, for messages.

    Raises:
        CheckpointError: weights that are missing, cut short or of other shapes.
    """
    try:
        with _LOADING:
            model, info = cls.from_pretrained(
                str(folder),  # kept in the config, which other programs write as text
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=dtype,
            )
    except GenLabError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the {what} in {folder} cannot be read, a file is missing, cut short or does not fit "
            f"its config.json ({reason[:300]}); fetch or save the model again"
        ) from error
    # diffusers only logs these and goes on with random weights.
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[fault]:
            raise CheckpointError(
                f"the weights in {folder} do not fit its config.json: {fault.replace('_', ' ')} "
                f"such as {sorted(map(str, info[fault]))[0]}; fetch or save the model again"
            )
    _realign(model)
    return model.eval()


def _realign(model: nn.Module) -> None:
    """Copy weights out of the mapped file, where they begin anywhere.

    Matrix libraries round differently when memory is not aligned: without this a loaded model's
    images would differ in the last bits from those of the model that was saved.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


def write_model(folder: Path, model: nn.Module) -> None:
    """Write config.json and safetensors into a folder; the caller sees to it that it is whole."""
    assert isinstance(model, ModelMixin)
    model.save_pretrained(folder)
    # The path that the weights were once read from is nobody's business.
    config = folder / MODEL_CONFIG
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for weights in folder.glob("*.safetensors"):
        make_public(weights)


def own_config(model: nn.Module) -> dict[str, Any]:
    """What a diffusers model was constructed with, as its config.json tells it.

    diffusers' own entries, such as the path that the model was read from, are left out.
    """
    config: Any = model.config
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    whole: dict[str, Any] = json.loads(json.dumps(own))
    return whole


def weights_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and bytes of weights: a model's identity.

    Args:
        named: a state dict's items, in any order.
    """
    digest = hashlib.sha256()
    for name, value in sorted(named):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
