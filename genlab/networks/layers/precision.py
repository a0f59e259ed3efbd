"""Operations and parameters that stay in float32, whatever a network computes in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def wide(dtype: torch.dtype) -> torch.dtype:
    """This dtype or float32, whichever is wider."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it operations compute in the types that they are given; "meta" has no autocast."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if kind != "meta" else nullcontext()


class WideBuffers(nn.Module):
    """A module whose own floating-point buffers never get narrower than float32."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's is untyped
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(now.device, wide(now.dtype))
        return self
