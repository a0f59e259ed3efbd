"""diffusers' models at rest: one model, one folder with config.json and safetensors."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open
from torch import Tensor, nn

from genlab.errors import CheckpointError, GenLabError, printable, reason
from genlab.files import make_public, read_json_object
from genlab.generators.claims import build_empty, check_config

MODEL_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"

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
            f"{folder / MODEL_CONFIG} names the class {printable(name)!r}; wanted is one of "
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
        CheckpointError: weights that are missing, cut short or of other shapes; or a config that
            claims another network, of which nothing is built then.
    """
    if not (folder / MODEL_CONFIG).is_file():
        raise CheckpointError(
            f"the {what} in {folder} cannot be read, there is no {MODEL_CONFIG}; fetch or save the "
            "model again"
        )
    config = read_config(folder)
    check_config(config, str(folder / MODEL_CONFIG))
    if config.get("quantization_config") is not None:  # diffusers would load another package for it
        raise CheckpointError(
            f"the {what} in {folder} is quantized, which GenLab does not read; save the model in "
            "float32"
        )
    try:
        with _LOADING:
            _check_shapes(folder, cls, config)
            model, info = cls.from_pretrained(
                str(folder),  # kept in the config, which other programs write as text
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=dtype,
            )
    except GenLabError:
        raise
    except Exception as error:  # what diffusers and safetensors raise cannot be listed
        raise CheckpointError(
            f"the {what} in {folder} cannot be read, a file is missing, cut short or does not fit "
            f"its config.json ({reason(error)}); fetch or save the model again"
        ) from error
    # diffusers only logs these and goes on with random weights.
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[fault]:
            raise _misfit(folder, fault.replace("_", " "), sorted(map(str, info[fault]))[0])
    _realign(model)
    return model.eval()


def _check_shapes(folder: Path, cls: type[Any], config: Mapping[str, Any]) -> None:
    """Hold the config against the shapes in the files' heads, before diffusers takes memory."""
    stored = _stored_shapes(folder)
    if stored is None:  # no weights at all: diffusers says which files it looked for
        return
    where = f"the {cls.__name__} in {folder}"
    empty: nn.Module = build_empty(lambda: cls.from_config(dict(config)), len(stored), where)
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    for fault, names in (
        ("missing keys", expected.keys() - stored.keys()),
        ("unexpected keys", stored.keys() - expected.keys()),
    ):
        if names:
            raise _misfit(folder, fault, min(names))
    for name, shape in expected.items():
        if stored[name] != shape:
            raise CheckpointError(
                f"{where} does not fit its config.json: {printable(name, 200)} is "
                f"{list(stored[name])} where {list(shape)} is needed; fetch or save the model again"
            )


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of all tensors in a folder; None where there is no file of weights."""
    index = folder / f"{_WEIGHTS}.index.json"
    if (folder / _WEIGHTS).is_file():
        files = [_WEIGHTS]
    elif index.is_file():
        files = _shards(index)
    else:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def _shards(index: Path) -> list[str]:
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise CheckpointError(f"{index} has no weight_map; fetch it again")
    files = sorted(set(places.values()))
    for file in files:
        if Path(file).name != file:
            raise CheckpointError(f"{index} points to {printable(file)!r}, outside its folder")
    return files


def _misfit(folder: Path, fault: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"the weights in {folder} do not fit its config.json: {fault} such as "
        f"{printable(name, 200)}; fetch or save the model again"
    )


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
