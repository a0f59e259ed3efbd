"""NVIDIA's network pickles: from the tree of records to architecture arguments and tensors."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.checkpoints.pickles.machine import Budget, PickleMachine, RefusedError
from genlab.checkpoints.pickles.records import NAMES, ModuleRecord
from genlab.checkpoints.pickles.torch_storage import TensorRecord
from genlab.checkpoints.readers.edm_config import EDM_CLASSES, positional_names
from genlab.errors import CheckpointError, reason
from genlab.saving.claims import listed

_MAX_MODULES = 5_000
_LETTERS = 100
"""Letters of a name that cost as much as an instruction."""


@dataclass(frozen=True)
class PickledNetwork:
    """A network as its file describes it, nothing built yet.

    Attributes:
        class_name: the official preconditioning class.
        kwargs: arguments that its constructor was called with; None where the file does not record
            them.
        tensors: the state dict.
    """

    class_name: str
    kwargs: dict[str, Any] | None
    tensors: dict[str, TensorRecord]


def read_pickle(path: Path) -> PickledNetwork:
    """Read an official EDM pickle. Its program text is skipped.

    Raises:
        CheckpointError: the file is cut short, holds no EDM network, or asks for anything that a
            network does not need; the message names what it asked for.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            budget = Budget()
            content = PickleMachine(data, NAMES, budget).run()
            return _describe(content, len(data), budget)
    except RefusedError as refusal:
        raise CheckpointError(f"{path} {refusal}") from refusal
    except Exception as error:  # mmap calls an empty file a ValueError
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); check the file") from error


def _describe(content: Any, file_size: int, budget: Budget) -> PickledNetwork:
    network = _network(content)
    if network.class_name not in EDM_CLASSES:
        raise RefusedError(_other_class(network))
    tensors = dict(_tensors(network, budget))
    if sum(tensor.nbytes for tensor in tensors.values()) > file_size:
        raise RefusedError("describes more numbers than it holds, as if made to exhaust")
    return PickledNetwork(
        class_name=network.class_name,
        kwargs=_arguments(network),
        tensors=tensors,
    )


def _network(content: Any) -> ModuleRecord:
    network = content.get("ema") if isinstance(content, dict) else content
    if isinstance(network, ModuleRecord):
        return network
    listing = listed(list(content)) if isinstance(content, dict) else type(content).__name__
    raise RefusedError(f"holds no network under the key 'ema' (found: {listing or 'nothing'})")


def _other_class(network: ModuleRecord) -> str:
    if network.class_name == "Precond" and "unet" in network.table("_modules"):
        return (
            "holds a network of EDM2 (Precond around a magnitude-preserving U-Net), which GenLab "
            "does not support yet; it reads the networks of EDM"
        )
    return (
        f"holds a network of class {ascii(network.class_name)[1:-1][:60]}; GenLab reads EDM's "
        f"{', '.join(EDM_CLASSES)}"
    )


def _arguments(network: ModuleRecord) -> dict[str, Any] | None:
    args, kwargs = network.state.get("_init_args"), network.state.get("_init_kwargs")
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        return None
    names = positional_names(network.class_name)
    if len(args) > len(names):
        raise RefusedError(
            f"records {len(args)} arguments for {network.class_name}, which has {len(names)}"
        )
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _tensors(root: ModuleRecord, budget: Budget) -> Iterator[tuple[str, TensorRecord]]:
    """Walk the modules as ``state_dict`` does: parameters, lasting buffers, the modules inside.

    One record may stand in many places, and is paid for in each, with the letters of its names.
    """
    pending = [("", root)]
    for _ in range(_MAX_MODULES):
        if not pending:
            return
        prefix, module = pending.pop()
        passing = module.state.get("_non_persistent_buffers_set")
        skipped = passing if isinstance(passing, set | frozenset) else frozenset()
        for name, value in [
            *module.table("_parameters").items(),
            *module.table("_buffers").items(),
        ]:
            budget.spend(1 + (len(prefix) + len(str(name))) // _LETTERS)
            if isinstance(value, TensorRecord) and name not in skipped:
                yield f"{prefix}{name}", value
        inner = []
        for name, part in module.table("_modules").items():
            budget.spend(1 + (len(prefix) + len(str(name))) // _LETTERS)
            if isinstance(part, ModuleRecord):
                inner.append((f"{prefix}{name}.", part))
        pending += reversed(inner)
    raise RefusedError(f"holds more than {_MAX_MODULES} modules, as if made to exhaust")
