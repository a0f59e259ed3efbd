"""State dicts: read from files without running anything, and checked against a network."""

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from genlab.checkpoints.pickle_machine import readable_name
from genlab.errors import CheckpointError

StateDict = dict[str, Tensor]

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".ckpt", ".bin")

_CONTAINERS = ("ema", "state_dict", "model", "net")
"""Keys under which training scripts keep the state dict, the averaged weights first."""

_PARALLEL = "module."
"""Before every name in files of ``DataParallel``, which wraps the network."""

MOST_SHARED = 2
"""Times that a file's bytes may stand in its tensors: tied weights have two names."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file of tensors holds.

    Attributes:
        state: the state dict, the averaged one where there are several, under the network's own
            names also where ``DataParallel`` wrapped it.
        arguments: those of the training script, where it kept them; plain values, unchecked.
    """

    state: StateDict
    arguments: Mapping[str, Any]


def read_state_dict(path: Path) -> StateDict:
    """The state dict of a file of tensors; see `read_checkpoint`."""
    return read_checkpoint(path).state


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of tensors; floating-point ones come as float32, whatever they were stored as.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote (``.pt``, ``.pth``, ``.ckpt``,
            ``.bin``), which is read with PyTorch's weights-only unpickler. Of names in it only
            ``argparse.Namespace`` is let through besides tensors: a bag of values.

    Raises:
        CheckpointError: the file is missing, cut short, no file of tensors, asks to run code, or
            would take far more memory than it has bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; check the path")
    if path.suffix in SAFETENSORS:
        return Checkpoint(_own_names(as_float32(_read_safetensors(path))), {})
    if path.suffix in TORCH:
        content = _read_torch(path)
        state = _tensors_of(content, path)
        _check_held(state, path)
        return Checkpoint(_own_names(as_float32(state)), _arguments_of(content))
    raise CheckpointError(
        f"{path} is not a file of tensors that GenLab knows; it reads "
        f"{', '.join(SAFETENSORS + TORCH)}"
    )


def as_float32(tensors: Mapping[str, Tensor]) -> StateDict:
    """Cast floating-point tensors to float32 (exact for 16-bit ones); leave whole numbers alone."""
    return {
        name: value.to(torch.float32) if value.is_floating_point() else value
        for name, value in tensors.items()
    }


def _own_names(state: StateDict) -> StateDict:
    if not all(name.startswith(_PARALLEL) for name in state):
        return state
    return {name.removeprefix(_PARALLEL): value for name, value in state.items()}


def _read_safetensors(path: Path) -> StateDict:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is cut short or damaged ({str(error).rstrip('.')}); fetch or save it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        _check_unpacked(path)
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {readable_name(wanted[1])}" if wanted else "holds more than tensors"
        raise CheckpointError(
            f"{path} {what}, which GenLab never runs; save the bare state dict as safetensors "
            "where you trust the file"
        ) from error
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        MemoryError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise CheckpointError(
            f"{path} is cut short or damaged ({reason}); fetch or save it again"
        ) from error


def _check_unpacked(path: Path) -> None:
    """Refuse archives that hold more than their bytes: torch.save never compresses."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise CheckpointError(
            f"{path} unpacks to {size:,} bytes, more than it has; where you trust the file, load "
            "it and save it again with torch.save"
        )


def _arguments_of(content: Any) -> dict[str, Any]:
    arguments = content.get("args") if isinstance(content, Mapping) else None
    return dict(vars(arguments)) if isinstance(arguments, Namespace) else {}


def _check_held(state: StateDict, path: Path) -> None:
    """Refuse tensors without numbers of their own.

    A forged stride makes terabytes of one number, and so do many names for the same ones.
    """
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path} does not hold all numbers of {name}, a tensor of {list(value.shape)}; "
                "save a contiguous copy of it"
            )
    total = sum(value.numel() * value.element_size() for value in state.values())
    if total > MOST_SHARED * path.stat().st_size:
        raise CheckpointError(
            f"{path} describes {total:,} bytes of tensors and holds fewer: many share the same "
            "numbers; save a copy of each"
        )


def _tensors_of(content: Any, path: Path, depth: int = 0) -> StateDict:
    if isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items()}
        for key in _CONTAINERS:
            # Each container at most once inside another; a forged one may hold itself.
            if isinstance(content.get(key), Mapping) and depth < len(_CONTAINERS):
                return _tensors_of(content[key], path, depth + 1)
    found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path} holds no state dict (found: {found or 'nothing'}); "
        "save network.state_dict() itself"
    )


HEAD = 1 << 21
"""Bytes at the beginning of a file: all formats name their tensors there, before the numbers."""


def mentions(path: Path, name: str) -> bool:
    """Whether a file of tensors names this one, going by its first bytes; nothing is loaded."""
    if path.suffix not in SAFETENSORS + TORCH:
        return False
    try:
        with path.open("rb") as file:
            return name.encode() in file.read(HEAD)
    except OSError:
        return False


N = TypeVar("N", bound=nn.Module)


def build_network(
    cls: type[N],
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor],
    where: str,
    computed: Collection[str] = (),
) -> N:
    """Build a network and fill it with a file's weights, in evaluation mode.

    It is built without memory first: a claim of a huge network meets the file's real shapes before
    anything is allocated.

    Args:
        cls: the network's class.
        arguments: of its constructor.
        state: all weights and buffers, under the network's names.
        where: file and network, as messages begin.
        computed: weights and buffers that the network computes itself and ``state`` lacks.

    Raises:
        CheckpointError: it cannot be built so, or the weights do not fit it.
    """
    try:
        with torch.device("meta"):
            network = cls(**arguments)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise CheckpointError(f"{where} cannot be built: {error}") from error
    expected = {name: t for name, t in network.state_dict().items() if name not in computed}
    check_state_dict(expected, state, where)
    # Copies, because tensors in a mapped file begin anywhere, and matrix libraries round
    # differently where memory is not aligned.
    copies = {name: state[name].to(t.dtype, copy=True) for name, t in expected.items()}
    held = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    if not held <= copies.keys():  # what a network computes itself has numbers only in memory
        network = cls(**arguments)
    network.load_state_dict(copies, strict=not computed, assign=True)  # the names were compared
    return network.eval()


def check_state_dict(expected: Mapping[str, Tensor], got: Mapping[str, Any], where: str) -> None:
    """Compare names and shapes.

    Args:
        expected: the network's own state dict (meta tensors will do).
        got: what the file holds: tensors, or anything with a ``shape``.
        where: file and network, as the error message begins.

    Raises:
        CheckpointError: names what is missing, unexpected or of another shape, in one sentence.
    """
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    shapes = [
        f"{name} is {list(got[name].shape)} where {list(value.shape)} is needed"
        for name, value in expected.items()
        if name in got and tuple(got[name].shape) != tuple(value.shape)
    ]
    faults = [
        *(["missing: " + _some(missing)] if missing else []),
        *(["unexpected: " + _some(unexpected)] if unexpected else []),
        *([_some(shapes)] if shapes else []),
    ]
    if faults:
        raise CheckpointError(
            f"{where} does not fit: {'; '.join(faults)}; check the config against the file"
        )


def _some(names: list[str], shown: int = 3) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
