"""Find where a program waits for its device, on torch's meta device: no GPU is needed."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")

_COPIES: dict[Any, int] = {torch.ops.aten._to_copy: 0, torch.ops.aten.copy_: 1}
"""Operation -> which of its arguments is copied."""


class Crossings(TorchDispatchMode):
    """Notes copies from the CPU that wait. Reading a meta tensor's values fails by itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch is untyped here
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        told = kwargs or {}
        out = func(*args, **told)
        copied = _COPIES.get(func.overloadpacket)
        if copied is not None and not (told.get("non_blocking") or args[2:]):
            source = args[copied]
            if source.device.type == "cpu" and out.device == META:
                self.waits.append(f"{func} of {tuple(source.shape)}")
        return out


def waits_of(work: Callable[[], object]) -> list[str]:
    """The copies that wait while ``work`` runs."""
    with Crossings() as crossings:
        work()
    return crossings.waits
