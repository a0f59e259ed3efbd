"""Read tensors in network pickles: PyTorch's older storage format, without its loader.

A storage is a byte string that holds a small file of its own: five pickles (magic number, format
version, byte order and sizes of the machine, the storage's description, the keys that follow) and
then the raw numbers behind their count. All sizes are checked against the bytes that are there
before anything is made.

Source: read off PyTorch's ``torch/serialization.py`` (the format before 1.6, which still serves
    here).
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.checkpoints.pickles.machine import (
    Budget,
    Maker,
    Name,
    PickleMachine,
    Record,
    RefusedError,
)

MAGIC = 0x1950A86A20F9469CFC6C
FORMAT_VERSION = 1001

_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.BoolStorage": torch.bool,
}
_NAMES: dict[str, Maker | None] = dict.fromkeys(_STORAGES)


@dataclass(frozen=True)
class StorageRecord(Record):
    """A flat run of numbers.

    Attributes:
        dtype: their type.
        data: their bytes, little-endian.
    """

    dtype: torch.dtype
    data: memoryview

    def __len__(self) -> int:
        return len(self.data) // self.dtype.itemsize


@dataclass(frozen=True)
class TensorRecord(Record):
    """A tensor that has not been made yet: a view into a storage."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride) or self.offset < 0:
            raise RefusedError(f"gives a tensor shape {self.shape} and strides {self.stride}")
        # Overlapping views would make large tensors out of few bytes, so none may exceed its
        # storage.
        if self.numel > len(self.storage) or self._end > len(self.storage):
            raise RefusedError(
                f"announces a tensor of shape {list(self.shape)} in {len(self.storage)} numbers"
            )

    @property
    def _end(self) -> int:
        """One past the last number of the storage that the tensor touches."""
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + sum((n - 1) * step for n, step in steps) + 1 if self.numel else 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the tensor once it is made."""
        return self.numel * self.storage.dtype.itemsize

    def to_tensor(self) -> Tensor:
        """Make the tensor, contiguous and with memory of its own."""
        if not self.numel:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        item = self.storage.dtype.itemsize
        touched = self.storage.data[self.offset * item : self._end * item]
        # frombuffer needs writable memory to be quiet; the copy also frees the tensor from the
        # file.
        flat = torch.frombuffer(bytearray(touched), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def read_storage(data: bytes, budget: Budget) -> StorageRecord:
    """Read the byte string of one storage.

    Args:
        data: a whole file of PyTorch's older format that holds a single storage.
        budget: of the file around it.

    Raises:
        RefusedError: it is cut short, holds anything else, or asks for any name but a storage type.
    """
    stream = io.BytesIO(data)
    descriptions: list[tuple[torch.dtype, str, int]] = []

    def describe(identity: Any) -> None:
        descriptions.append(_description(identity))

    def read() -> Any:
        return PickleMachine(stream, _NAMES, budget, describe).run()

    if read() != MAGIC or read() != FORMAT_VERSION:
        raise RefusedError("holds a storage of an unknown format")
    machine = read()
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise RefusedError("holds a storage that was not written on a little-endian machine")
    read()
    keys = read()
    if len(descriptions) != 1 or keys != [descriptions[0][1]]:
        raise RefusedError("holds a byte string that is not exactly one storage")
    dtype, _, count = descriptions[0]
    start = stream.tell() + 8
    size = count * dtype.itemsize
    if int.from_bytes(data[start - 8 : start], "little") != count or len(data) - start < size:
        raise RefusedError(
            f"announces a storage of {count} numbers and gives {len(data) - start} bytes"
        )
    return StorageRecord(dtype, memoryview(data)[start : start + size])


def _description(identity: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and count of ``("storage", type, key, place, count, view)``."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise RefusedError("holds a byte string that is no storage")
    kind, key, _, count = identity[1:5]
    if (
        not isinstance(kind, Name)
        or not isinstance(key, str)
        or type(count) is not int
        or count < 0
    ):
        raise RefusedError("holds a storage without type, key or count")
    if identity[5:] not in ((), (None,)):
        raise RefusedError("holds a storage that is part of another one")
    return _STORAGES[kind.name], key, count
