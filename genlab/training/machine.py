"""What a run trains on, for logs and model cards."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch


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
