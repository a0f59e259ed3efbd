"""Tables of discrete models, indexed on the tensors' own device, so that no step waits for it."""

from functools import lru_cache

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from genlab import compute


@lru_cache(maxsize=256)
def placed(
    table: Float[Tensor, " N"], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, " N"]:
    """A table on a device, moved there once. Hand in the very object each time, and never write."""
    return table.to(dtype).to(device)  # cast first: Metal has no float64


def gather(
    table: Float64[Tensor, " N"], index: int | Int64[Tensor, " B"], like: Tensor | None = None
) -> Tensor:
    """Entries of a table: one number (0-d, on the CPU), or one for each sample as a column.

    Args:
        table: see `placed`.
        index: one for the whole batch, or one for each sample.
        like: gives columns their dtype and device; None leaves them where ``index`` is, in float64
            (float32 on Metal).
    """
    if isinstance(index, int):
        return table[index]
    device = index.device if like is None else like.device
    dtype = compute.widest(device) if like is None else like.dtype
    return placed(table, device, dtype)[index.to(device)].reshape(-1, 1, 1, 1)
