"""diffusers' models on disk: one model, one folder with config.json and safetensors."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import CheckpointError, GenLabError, printable, reason
from genlab.files import make_public, read_json_object
from genlab.saving.claims import build_empty, check_config
from genlab.saving.weight_files import (
    WEIGHTS,
    read_shapes,
    read_tensors,
    weight_files,
)

MODEL_CONFIG = "config.json"

_BUILDING = Lock()
"""Building without memory changes what torch makes: one thread at a time, then."""


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
    folder: Path,
    cls: type[Any],
    dtype: torch.dtype | None = None,
    kind: str = "model",
    *,
    empty: bool = False,
) -> Any:
    """Build a model and fill it with the folder's weights, all of them.

    Args:
        folder: with config.json and safetensors, as ``save_pretrained`` writes it.
        cls: a diffusers ``ModelMixin``.
        dtype: of the weights; None keeps float32.
        kind: the model's part, for messages.
        empty: whether it stays on the meta device, without its numbers.

    Raises:
        CheckpointError: weights that are missing, cut short or of other shapes; or a config that
            claims another network, of which nothing is built then.
    """
    if not (folder / MODEL_CONFIG).is_file():
        raise CheckpointError(
            f"the {kind} in {folder} cannot be read, there is no {MODEL_CONFIG}; fetch or save the "
            "model again"
        )
    config = read_config(folder)
    check_config(config, str(folder / MODEL_CONFIG))
    if config.get("quantization_config") is not None:  # diffusers would load another package for it
        raise CheckpointError(
            f"the {kind} in {folder} is quantized, which GenLab does not read; save the model in "
            "float32"
        )
    try:
        files = weight_files(folder)
        if not files:
            raise CheckpointError(
                f"the {kind} in {folder} cannot be read, a file is missing ({WEIGHTS}); fetch or "
                "save the model again"
            )
        model = _build(folder, cls, config, read_shapes(files), keep_empty=empty)
        if not empty:
            model.load_state_dict(_read_state(files, model, dtype), assign=True)
    except GenLabError:
        raise
    except Exception as error:  # what diffusers and safetensors raise cannot be listed
        raise CheckpointError(
            f"the {kind} in {folder} cannot be read, a file is missing, cut short or does not fit "
            f"its config.json ({reason(error)}); fetch or save the model again"
        ) from error
    return model.eval()


def _build(
    folder: Path,
    cls: type[Any],
    config: Mapping[str, Any],
    stored: dict[str, tuple[int, ...]],
    *,
    keep_empty: bool,
) -> nn.Module:
    """A model that the weights fit, on the meta device unless it has tensors beside them.

    Args:
        folder: that it is read from.
        cls: the model's class.
        config: is checked against ``stored`` before anything takes memory.
        stored: name -> shape of what the files' heads list.
        keep_empty: whether it stays without memory whatever it is.
    """
    where = f"the {cls.__name__} in {folder}"
    with _BUILDING:
        empty: nn.Module = build_empty(lambda: cls.from_config(dict(config)), len(stored), where)
    rename_old(empty, stored)
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
    held = {name for name, _ in (*empty.named_parameters(), *empty.named_buffers())}
    ours = cls.__module__.startswith("genlab.")  # others may keep tensors that are no buffers
    if keep_empty or (ours and held <= expected.keys()):
        return empty
    model: nn.Module = cls.from_config(dict(config))  # with what it computes itself
    return model


def _read_state(
    files: Sequence[Path], model: nn.Module, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """All weights, in ``dtype`` but for what the model needs otherwise.

    Args:
        files: of the weights.
        model: that they are for, perhaps without memory.
        dtype: None takes that of the model, whatever they are stored in.
    """
    state = {name: tensor for path in files for name, tensor in read_tensors(path)}
    rename_old(model, state)
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, own in model.state_dict().items():
        casts = dtype is not None and own.is_floating_point() and not kept & {*name.split(".")}
        state[name] = state[name].to(dtype if casts else own.dtype)
    return state


def rename_old(model: nn.Module, state: dict[str, Any]) -> None:
    """Give tensors of old files the names of today, in place, as diffusers' own loading does.

    Attention of its autoencoders was once a class of its own, whose names hub files still have.
    """
    rename = getattr(model, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(state)


def _misfit(folder: Path, fault: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"the weights in {folder} do not fit its config.json: {fault} such as "
        f"{printable(name, 200)}; fetch or save the model again"
    )


def write_model(folder: Path, model: nn.Module) -> None:
    """Write config.json and safetensors into a folder; the caller makes that atomic."""
    model.save_pretrained(folder)  # type: ignore[operator]  # of diffusers, or soon to be
    # The path that the weights were once read from is private.
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
    return _digest(sorted(named))


def stored_sha256(folder: Path, model: nn.Module, others: Iterable[tuple[str, Tensor]] = ()) -> str:
    """`weights_sha256` of a folder's weights and others, of which one at a time is in memory.

    Args:
        folder: of the model.
        model: read from it, perhaps without its numbers.
        others: weights that count too, by name.
    """
    places = {name: path for path in weight_files(folder) for name in read_shapes([path])}
    there = dict(others)

    def in_order() -> Iterator[tuple[str, Tensor]]:
        own = model.state_dict()
        for name in sorted({*own, *there}):
            if name in there:
                yield name, there[name]
            else:
                [(_, tensor)] = read_tensors(places[name], only=name)
                yield name, tensor.to(own[name].dtype)

    return _digest(in_order())


def _digest(named: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in named:
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
