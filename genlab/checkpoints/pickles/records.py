"""The names that NVIDIA's network pickles may use, and the plain records that stand for them.

Record layout: a network is a tree of *persistent objects*. Each is one call of
``torch_utils.persistence._reconstruct_persistent_obj`` with a mapping ``type, version, module_src,
class_name, state``; ``module_src`` is the program text that the official loader would run, and is
dropped here unread. ``state`` is the module's ``__dict__``: ``_parameters``, ``_buffers``,
``_modules``, plain attributes, and the constructor's ``_init_args`` and ``_init_kwargs``.
Containers of modules are stored by PyTorch's own class names, tensors as PyTorch's rebuild calls,
whose storages are byte strings in PyTorch's older file format
(`genlab.checkpoints.pickles.torch_storage`).

Source: read off NVlabs/edm, torch_utils/persistence.py (version 6 of the layout), and PyTorch's
``torch/_utils.py``.
"""

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from genlab.checkpoints.pickles.machine import (
    Maker,
    PickleMachine,
    Record,
    RefusedError,
    as_set,
    check_key,
)
from genlab.checkpoints.pickles.torch_storage import StorageRecord, TensorRecord, read_storage

LAYOUT_VERSION = 6
_MAX_RANK = 8


class ModuleRecord(Record):
    """A module (or another object) as a file describes it.

    Attributes:
        class_name: the class that the file names; nothing of that name is looked up.
        state: the object's attributes.
    """

    def __init__(self, class_name: str, state: Mapping[str, Any] | None = None) -> None:
        self.class_name = class_name
        self.state: dict[str, Any] = dict(state or {})

    def set_state(self, state: Any) -> None:
        """Take the attributes."""
        if not isinstance(state, Mapping):
            raise RefusedError(f"gives a {self.class_name} a state that is no mapping")
        self.state = dict(state)

    def parts(self) -> Iterable[Any]:
        """The attributes' values."""
        return self.state.values()

    def table(self, name: str) -> dict[str, Any]:
        """One of ``_parameters``, ``_buffers``, ``_modules``; empty where there is none."""
        value = self.state.get(name)
        return value if isinstance(value, dict) else {}


class DtypeRecord(Record):
    """A NumPy data type: numbers and truth values only."""

    def __init__(self, code: str) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}", code):
            raise RefusedError(
                f"holds NumPy values of type {ascii(code)[:20]}; GenLab reads numbers only"
            )
        self.code = code
        self.order = "="

    def set_state(self, state: Any) -> None:
        """Take the byte order, the second entry."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise RefusedError("gives a NumPy type an unknown state")
        self.order = order

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type itself."""
        return np.dtype(self.order + self.code)


class ArrayRecord(Record):
    """A NumPy array whose contents follow as its state."""

    def __init__(self) -> None:
        self.array: np.ndarray[Any, Any] = np.empty(0)

    def set_state(self, state: Any) -> None:
        """Take ``(version, shape, dtype, Fortran order, bytes)``."""
        _, shape, dtype, fortran, data = state if isinstance(state, tuple) else ()
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> "ArrayRecord":
        """Take the contents, a view into ``data``."""
        sizes = whole_numbers(shape)
        if not isinstance(dtype, DtypeRecord) or not isinstance(data, bytes | bytearray):
            raise RefusedError("gives a NumPy array an unknown state")
        if math.prod(sizes) * dtype.dtype.itemsize != len(data):
            raise RefusedError(f"announces a NumPy array of {sizes} and gives {len(data)} bytes")
        flat = np.frombuffer(data, dtype.dtype)
        self.array = flat.reshape(sizes, order="F" if order == "F" else "C")
        return self


def whole_numbers(value: Any) -> tuple[int, ...]:
    """A shape or strides: a short tuple of whole numbers from 0 up."""
    if not isinstance(value, tuple) or len(value) > _MAX_RANK:
        raise RefusedError("gives a tensor an odd shape")
    if not all(type(item) is int and 0 <= item < 2**48 for item in value):
        raise RefusedError("gives a tensor an odd shape")
    return value


def _persistent(machine: PickleMachine, args: tuple[Any, ...]) -> ModuleRecord:
    (meta,) = args
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise RefusedError("holds a persistent object that is no class")
    if meta.get("version") != LAYOUT_VERSION:
        raise RefusedError(
            f"stores its network in version {reprlib.repr(meta.get('version'))} of the layout; "
            f"GenLab knows version {LAYOUT_VERSION}"
        )
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict | None):
        raise RefusedError("holds a persistent object without class name or state")
    return ModuleRecord(name, state)


def _container(name: str) -> Maker:
    def make(machine: PickleMachine, args: tuple[Any, ...]) -> ModuleRecord:
        () = args
        return ModuleRecord(name)

    return make


def _mapping(machine: PickleMachine, args: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict and EasyDict: a mapping, from nothing or from pairs."""
    (pairs,) = args or ([],)
    items = list(pairs.items()) if isinstance(pairs, dict) else pairs
    if not isinstance(items, list):
        raise TypeError
    machine.budget.spend(len(items))
    return {check_key(key): value for key, value in items}


def _set(machine: PickleMachine, args: tuple[Any, ...]) -> Any:
    (items,) = args or ([],)
    machine.budget.spend(len(items))
    return as_set(items)


def _latin1(machine: PickleMachine, args: tuple[Any, ...]) -> bytes:
    """How protocol 2 writes byte strings."""
    text, encoding = args
    if encoding not in ("latin1", "latin-1"):
        raise TypeError
    machine.budget.spend(len(text) // 64)  # 64 MB in all: official files use protocols 3 and 4
    return bytes(text, "latin-1")


def _tensor(machine: PickleMachine, args: tuple[Any, ...]) -> TensorRecord:
    storage, offset, shape, stride, *_ = args
    if not isinstance(storage, StorageRecord) or type(offset) is not int:
        raise TypeError
    return TensorRecord(storage, offset, whole_numbers(shape), whole_numbers(stride))


def _parameter(machine: PickleMachine, args: tuple[Any, ...]) -> TensorRecord:
    tensor, *_ = args
    if not isinstance(tensor, TensorRecord):
        raise TypeError
    return tensor


def _storage(machine: PickleMachine, args: tuple[Any, ...]) -> StorageRecord:
    (data,) = args
    if not isinstance(data, bytes):
        raise TypeError
    return read_storage(data, machine.budget)


def _size(machine: PickleMachine, args: tuple[Any, ...]) -> tuple[int, ...]:
    (items,) = args
    return whole_numbers(tuple(items))


def _device(machine: PickleMachine, args: tuple[Any, ...]) -> str:
    return ":".join(str(part) for part in args[:2] if isinstance(part, str | int))


def _numpy_dtype(machine: PickleMachine, args: tuple[Any, ...]) -> DtypeRecord:
    return DtypeRecord(args[0])


def _numpy_scalar(machine: PickleMachine, args: tuple[Any, ...]) -> Any:
    dtype, data = args
    if not isinstance(dtype, DtypeRecord) or len(data) != dtype.dtype.itemsize:
        raise TypeError
    return np.frombuffer(data, dtype.dtype)[0].item()


def _numpy_array(machine: PickleMachine, args: tuple[Any, ...]) -> ArrayRecord:
    return ArrayRecord()


def _numpy_buffer(machine: PickleMachine, args: tuple[Any, ...]) -> ArrayRecord:
    """How protocol 5 writes arrays."""
    data, dtype, shape, order = args
    return ArrayRecord().fill(data, dtype, shape, order)


_CONTAINERS = ("ModuleDict", "ModuleList", "Sequential", "ParameterList", "ParameterDict")
_DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "bool"),
    *("uint8", "int8", "int16", "int32", "int64"),
)

NAMES: dict[str, Maker | None] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": _mapping,
    "collections.OrderedDict": _mapping,
    **{  # protocol 2 writes the first of these
        f"{builtins}.{name}": _set
        for builtins in ("__builtin__", "builtins")
        for name in ("set", "frozenset")
    },
    "_codecs.encode": _latin1,
    **{f"torch.nn.modules.container.{name}": _container(name) for name in _CONTAINERS},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": _size,
    "torch.device": _device,
    **{f"torch.{name}": None for name in _DTYPES},
    "numpy.dtype": _numpy_dtype,
    "numpy.ndarray": None,
    **{
        f"numpy.{core}.{name}": maker
        for core in ("core", "_core")
        for name, maker in {
            "multiarray.scalar": _numpy_scalar,
            "multiarray._reconstruct": _numpy_array,
            "numeric._frombuffer": _numpy_buffer,
        }.items()
    },
}
"""All that a network pickle may name. Nothing here runs, imports or looks up anything."""
