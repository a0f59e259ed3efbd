"""A generator on disk: a diffusers pipeline folder.

`genlab.load` and `GenLabPipeline.from_pretrained` both read it.

``model_index.json`` names the network's class and holds what the network itself does not know
(preconditioning, class names, default sampler); ``network/`` is what diffusers' ``save_pretrained``
writes: config.json and safetensors. A latent diffusion model has its ``autoencoder/`` beside it.
"""

import glob
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from genlab.errors import CheckpointError, GenLabError, OutputError
from genlab.files import MAX_JSON
from genlab.networks.as_model import Model
from genlab.saving.index import INDEX, NETWORK, PIPELINE, is_component
from genlab.saving.models import read_model, write_model
from genlab.saving.weight_files import reads_shapes_alone

PARTS = ("autoencoder",)
"""Models that a folder may hold beside the network, each in a folder of its name."""
CARD = "README.md"
_OUR_NETWORKS = "genlab.networks."
_DIFFUSERS = "diffusers"


def write_folder(
    folder: Path,
    network: nn.Module,
    metadata: Mapping[str, Any],
    card: str | None = None,
    parts: Mapping[str, nn.Module] | None = None,
) -> None:
    """Write a generator; the folder changes only once everything is on the disk.

    Args:
        folder: may exist, with an older generator or other files in it.
        network: a diffusers ``ModelMixin``.
        metadata: the pipeline's other constructor arguments.
        card: text of the model card (README.md), which hubs show.
        parts: models beside the network, by names of `PARTS`.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    models = {NETWORK: network, **(parts or {})}
    index = {
        "_class_name": PIPELINE,
        "_diffusers_version": version("diffusers"),
        **{name: _component(model) for name, model in models.items()},
        **metadata,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            new = Path(name) / "new"
            for part, model in models.items():
                write_model(new / part, model)
            (new / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
            if card is not None:
                (new / CARD).write_text(card, encoding="utf-8")
            _move_into(new, folder)
    except GenLabError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the model to {folder}: {getattr(error, 'strerror', None) or error}"
        ) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what `write_folder` leaves beside a folder when it is killed.

    Call it only while nothing else writes to the folder.
    """
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        if path.is_dir() and re.fullmatch(r"\w{8}", path.suffix[1:], re.ASCII):
            inside = list(path.iterdir())
            if not inside or [item.name for item in inside] == ["new"]:
                shutil.rmtree(path, ignore_errors=True)


def _component(model: nn.Module) -> list[str]:
    """How an index names a model's class; diffusers' own classes stand under its top level."""
    module = type(model).__module__
    outside = module.startswith(f"{_DIFFUSERS}.")
    return [_DIFFUSERS if outside else module, type(model).__name__]


def _move_into(new: Path, folder: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    written = {path.relative_to(new) for path in new.rglob("*")}
    for path in sorted(new.rglob("*"), key=lambda p: (p.name == INDEX, p)):
        if path.is_file():
            (folder / path.relative_to(new)).parent.mkdir(exist_ok=True)
            path.replace(folder / path.relative_to(new))
    # Shards of an older, larger network would be read in preference to ours.
    for part in (NETWORK, *PARTS):
        for old in (folder / part).glob("diffusion_pytorch_model*"):
            if old.relative_to(folder) not in written:
                old.unlink()


def read_network(
    folder: Path, index: Mapping[str, Any], dtype: torch.dtype | None = None
) -> nn.Module:
    """Build the network that the index names and fill it with the folder's weights, all of them.

    Raises:
        CheckpointError: an unknown class, or weights that are missing, cut short or of other
            shapes.
    """
    cls = network_class(folder, index)
    network: nn.Module = read_model(
        folder / NETWORK, cls, dtype, NETWORK, empty=reads_shapes_alone()
    )
    return network


def network_class(folder: Path, index: Mapping[str, Any]) -> type[nn.Module]:
    """The class of the network that the index names.

    Raises:
        CheckpointError: an unknown one.
    """
    return _model_class(folder, *index[NETWORK])


def read_parts(folder: Path, index: Mapping[str, Any]) -> dict[str, nn.Module | None]:
    """The models beside the network, for each of `PARTS`; None where the index names none.

    Raises:
        CheckpointError: as `read_network`.
    """
    return {
        name: read_model(folder / name, _model_class(folder, *index[name]), kind=name)
        if is_component(index.get(name))
        else None
        for name in PARTS
    }


def _model_class(folder: Path, module: str, name: str) -> type[nn.Module]:
    """A class that the index names: one of ours, or of a module that the program imported.

    Importing a module because a downloaded file names it would run its code.
    """
    if module.startswith(_OUR_NETWORKS) or module == _DIFFUSERS:
        try:
            python_module = import_module(module)
        except (ImportError, ValueError) as error:  # the latter for names that are none
            raise CheckpointError(
                f"{folder / INDEX} names the module {module}, which this version of "
                "GenLab lacks; update GenLab"
            ) from error
    elif module in sys.modules:
        python_module = sys.modules[module]
    else:
        raise CheckpointError(
            f"{folder / INDEX} names the model {module}.{name}, which is not GenLab's; "
            f"if you trust it, import {module} before loading"
        )
    cls = getattr(python_module, name, None)
    # A base class has no config, so that nothing tells how to build it.
    if not (isinstance(cls, type) and _is_model(cls)):
        raise CheckpointError(
            f"{folder / INDEX}: {module} has no model {name} that a folder can hold; fetch or save "
            "the model again"
        )
    return cls


def _is_model(cls: type) -> bool:
    """Whether a folder can hold models of a class: of ours, or of diffusers', which is heavy."""
    if issubclass(cls, Model):
        return True
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.models.modeling_utils import ModelMixin

    return issubclass(cls, ModelMixin) and issubclass(cls, ConfigMixin)


def read_card(folder: Path) -> str | None:
    """The model card, where there is one."""
    path = folder / CARD
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(MAX_JSON).decode(errors="replace")
