"""State dicts: read from files without running anything, and checked against a network."""

import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from genlab.checkpoints.companions import HEAD, companion_hint
from genlab.checkpoints.pickles.machine import RefusedError, readable_name
from genlab.checkpoints.pickles.tuples import check_tuples
from genlab.errors import CheckpointError, printable, reason
from genlab.saving.claims import build_empty, check_state_dict, listed
from genlab.saving.models import rename_old
from genlab.saving.weight_files import read_shapes, read_tensors, reads_shapes_alone

StateDict = dict[str, Tensor]

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".ckpt", ".bin")

_CONTAINERS = ("ema", "state_dict", "model", "net")
"""Keys under which training scripts keep the state dict, the averaged weights first."""

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What ``torch.compile`` and others put into names, wherever they wrapped a module."""

_PREFIXES = ("module.", "model.", "net.", "network.")
"""Before every name where ``DataParallel`` or a training script's class holds the network."""

_NUMBERS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""Types of numbers that networks are stored in."""

_ALIGNMENT = 64
"""Bytes; where torch lets its own tensors begin."""

MOST_SHARED = 2
"""Times that a file's bytes may stand in its tensors: tied weights have two names."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file of tensors holds.

    Attributes:
        state: the state dict, the averaged one where there are several, under the network's own
            names also where ``DataParallel``, ``torch.compile`` or another class wrapped it.
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
        state = _read_safetensors(path)
        _check_held(state, path)
        return Checkpoint(own_names(as_float32(state)), {})
    if path.suffix in TORCH:
        content = _read_torch(path)
        state = _tensors_of(content, path)
        _check_held(state, path)
        return Checkpoint(own_names(as_float32(state)), _arguments_of(content))
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


def own_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict under the network's own names, whatever wrapped the network.

    Args:
        state: by the file's names. They stay as they are where two would become one.
    """
    names = dict(zip(state, unwrapped(state), strict=True))
    while prefix := _common_prefix(names.values()):
        names = {name: own.removeprefix(prefix) for name, own in names.items()}
    if len(set(names.values())) < len(names):
        return dict(state)
    return {names[name]: value for name, value in state.items()}


def unwrapped(names: Iterable[str]) -> list[str]:
    """Names without what compilation, sharding and checkpointing put into them."""
    return [_WRAPPERS.sub("", name) for name in names]


def _common_prefix(names: Collection[str]) -> str | None:
    common = (p for p in _PREFIXES if names and all(name.startswith(p) for name in names))
    return next(common, None)


def _read_safetensors(path: Path) -> StateDict:
    try:
        if reads_shapes_alone():
            with safe_open(path, framework="pt", device="cpu") as file:  # maps what nobody reads
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        read_shapes([path])  # which finds out whether the file is whole
        return dict(read_tensors(path, foreign=True))
    except CheckpointError:
        raise
    except Exception as error:  # what a damaged file makes the library raise cannot be listed
        raise CheckpointError(
            f"{path} is cut short or damaged ({reason(error)}); fetch or save it again"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        _check_unpacked(path)
        check_tuples(path)
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old ways to store, which are no news to the user
            mapped = reads_shapes_alone() and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except RefusedError as error:
        raise CheckpointError(f"{path} {error}; nothing of it was read") from error
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        fault = f"asks for {readable_name(match[1])}" if match else "holds more than tensors"
        raise CheckpointError(
            companion_hint(path)
            or f"{path} {fault}, which GenLab never runs; save the bare state dict as safetensors "
            "where you trust the file"
        ) from error
    except Exception as error:  # what a damaged file makes PyTorch raise cannot be listed
        raise CheckpointError(
            f"{path} is cut short or damaged ({reason(error)}); fetch or save it again"
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
    """Refuse tensors without numbers of their own, or with numbers of another kind.

    A forged stride makes terabytes of one number, and so do many names for the same ones.
    """
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if plain and value.dtype not in _NUMBERS:
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path} holds {printable(name, 80)} as {kind}"
                f"{' (quantized)' if value.is_quantized else ''}, which no network of GenLab "
                "computes with; save the model in float32"
            )
        if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path} does not hold all numbers of {printable(name, 80)}, a tensor of "
                f"{list(value.shape)}; save a contiguous copy of it"
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
    hint = companion_hint(path, content)
    listing = listed(list(content)) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        hint
        or f"{path} holds no state dict (found: {listing or 'nothing'}); "
        "save network.state_dict() itself"
    )


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
    for name, value in state.items():
        if not value.numel():  # no network of ours has such a tensor
            raise CheckpointError(
                f"{where} holds no numbers of {printable(name, 80)}, a tensor of "
                f"{list(value.shape)}; fetch or save the file again"
            )
    network = build_empty(lambda: cls(**arguments), len(state), where)
    state = dict(state)
    rename_old(network, state)
    expected = {name: t for name, t in network.state_dict().items() if name not in computed}
    check_state_dict(expected, state, where)
    if reads_shapes_alone():
        return network.eval()
    weights = _own_memory({name: state[name].to(t.dtype) for name, t in expected.items()})
    held = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    if not held <= weights.keys():  # what a network computes itself has numbers only in memory
        network = cls(**arguments)
    network.load_state_dict(weights, strict=not computed, assign=True)  # the names were compared
    return network.eval()


def _own_memory(tensors: Mapping[str, Tensor]) -> StateDict:
    """Tensors that share no memory, each from an address that is aligned; others are copied.

    Views of a file in memory begin anywhere, and matrix libraries round differently where memory is
    not aligned. What `read_checkpoint` read stays where it is: weights of gigabytes are held once.
    """
    own: StateDict = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        address = tensor.data_ptr()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        alone = whole and address % _ALIGNMENT == 0 and address not in addresses
        own[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
        addresses.add(own[name].data_ptr())
    return own
