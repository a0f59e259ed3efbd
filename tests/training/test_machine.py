"""What a run is told of the machine that it trains on."""

from dataclasses import replace

import pytest
import torch

from genlab import compute
from genlab.training import machine
from genlab.training.config import Precision
from genlab.training.machine import slow_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("fast", [(), (torch.bfloat16,)])
def test_slow_mixed_precision_is_told(
    fast: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(compute.choose(CPU), fast_dtypes=fast)
    monkeypatch.setattr(machine, "choose", lambda device: plan)
    assert slow_precision(Precision.no, CPU) is None
    told = slow_precision(Precision.bf16, CPU)
    assert (told is None) == bool(fast)
    assert fast or "mixed_precision=no trains faster" in str(told)
    assert "mixed_precision=fp16" in str(slow_precision(Precision.fp16, CPU))
