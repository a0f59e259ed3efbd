"""The safetensors files of a folder that diffusers wrote: shapes first, numbers once they fit.

Numbers are read straight into memory of their own. The library's way maps the file, which counts as
a second copy while the weights are laid out anew; and a mapped tensor begins anywhere, which makes
matrix libraries round otherwise than for the model that was saved.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from genlab.errors import CheckpointError, printable
from genlab.files import read_json_object

WEIGHTS = "diffusion_pytorch_model.safetensors"

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_STORED_ONLY = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
"""Types that other programs store and no network here computes in."""

_shapes_alone: ContextVar[bool] = ContextVar("shapes_alone", default=False)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within it models are read without their numbers: on the meta device, from heads of files.

    For those who say what a file holds: gigabytes of weights take no memory.
    """
    token = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(token)


def reads_shapes_alone() -> bool:
    """Whether the caller is within `shapes_alone`."""
    return _shapes_alone.get()


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights: one, or the shards of an index; none where it has none.

    Raises:
        CheckpointError: the index is damaged, or points out of the folder.
    """
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not index.is_file():
        return []
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise CheckpointError(f"{index} has no weight_map; fetch it again")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} points to {printable(name)!r}, outside its folder")
    return [folder / name for name in names]


def read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors, from the heads of files.

    Raises:
        SafetensorError: a file is damaged, or cut short.
        OSError: it cannot be read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def read_tensors(
    path: Path, only: str | None = None, *, foreign: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other, each in memory of its own.

    Args:
        path: a file whose head `read_shapes` has read, and so found whole.
        only: the name of a single one that is read; None reads all.
        foreign: whether types are read that have to be cast before anything computes in them.

    Raises:
        CheckpointError: numbers of a type that no network here computes in, or a file that changes
            while it is read.
        OSError: it cannot be read.
    """
    dtypes = _DTYPES | _STORED_ONLY if foreign else _DTYPES
    with path.open("rb") as file:
        head = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(head))
        entries.pop("__metadata__", None)
        for name, entry in entries.items() if only is None else [(only, entries[only])]:
            dtype = dtypes.get(entry["dtype"])
            if dtype is None:
                raise CheckpointError(
                    f"{path} holds numbers of the type {printable(entry['dtype'])}, which GenLab "
                    "does not read; save the model in float32"
                )
            tensor = torch.empty(entry["shape"], dtype=dtype)
            room = tensor.reshape(-1).view(torch.uint8).numpy().data
            file.seek(8 + head + entry["data_offsets"][0])
            if file.readinto(room) != room.nbytes:
                raise CheckpointError(f"{path} was cut short while it was read; fetch it again")
            yield name, tensor
