"""A description of the training hardware, for logs and model cards."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch

from genlab.compute import choose
from genlab.training.config import Precision

_HALVES = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def slow_precision(precision: Precision, device: torch.device) -> str | None:
    """A sentence where mixed precision costs time on a device rather than gains any, or None.

    On processors without instructions for bfloat16 (most laptops) a step takes several times as
    long as in float32.
    """
    if precision not in _HALVES or _HALVES[precision] in choose(device).fast_dtypes:
        return None
    return (
        f"mixed_precision={precision.value} is slower than float32 on this device ('genlab doctor' "
        "lists its fast types); mixed_precision=no trains faster here"
    )


def hardware(device: torch.device, processes: int = 1) -> str:
    """The devices of a run, in a few words.

    Args:
        device: of this process.
        processes: that train together.
    """
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    together = f"{processes} processes on " if processes > 1 else ""
    return f"{together}{os.cpu_count()} CPU cores ({_processor()})"


def peak_memory_mib() -> float:
    """The most memory taken so far: of the GPU where there is one, else of the process, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
