"""The one place that chooses how to compute, by device: memory format, kernels, libraries, types.

Networks say what they compute; `choose` says how, `ComputePlan.prepare` tells the network, and
``genlab doctor`` shows it. Results differ by rounding only.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError

FAST_GAIN = 1.2
"""A type is fast when its convolutions are at least so many times as fast as float32's. Processors
without matrix units may have bfloat16 instructions of half the float32 rate: it has to be measured.
"""

WINOGRAD_GAIN = 2.0
"""How much faster than products torch's convolution may be before Winograd's algorithm, a quarter
of the work done by products, gains nothing: transforming to and fro costs the rest."""

PRODUCT_GAIN = 1.2
"""How much faster a 1x1 convolution must be than the same product before it takes its place: on an
Intel processor both are equally fast, and one measurement differs from the next by some per cent.
"""


def usable_device(name: str | torch.device) -> torch.device:
    """A device that computes here, found out by trying.

    Raises:
        ConfigError: there is none of this name, or it holds no numbers (``meta``).
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, AttributeError, ImportError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "no device is called so" if first.startswith("Expected one of") else first
        raise ConfigError(
            f"cannot use the device {str(name)!r}: {reason.rstrip('.!')}; 'genlab doctor' lists "
            "the devices of this machine"
        ) from error
    return device


@dataclass(frozen=True, kw_only=True)
class ComputePlan:
    """How to compute on one device.

    Attributes:
        device: the device.
        memory_format: of features and convolution kernels when sampling.
        training_memory_format: the same when training.
        attention: the fused kernel that torch takes for self-attention.
        winograd: whether float32 3x3 convolutions without gradients take Winograd's algorithm.
        convolve_products: whether float32 linear layers over many tokens are written as 1x1
            convolutions.
        speeds: what these choices rest on: GFLOP/s of torch's operations, measured here.
        autocast_dtypes: what torch can convolve and multiply in besides float32.
        fast_dtypes: those that gain time too: on a CPU measured, on a GPU by its instructions.
    """

    device: torch.device
    memory_format: torch.memory_format
    training_memory_format: torch.memory_format
    attention: str
    winograd: bool
    convolve_products: bool
    speeds: Mapping[str, float]
    autocast_dtypes: tuple[torch.dtype, ...]
    fast_dtypes: tuple[torch.dtype, ...]

    def prepare(self, network: nn.Module) -> nn.Module:
        """Lay out a network's weights and choose its kernels, in place; the weights stay the same.

        Doing it again changes nothing. Prepare before compiling.

        Args:
            network: on this plan's device.

        Returns:
            The same network.
        """
        # torch's own `to`: wrappers of it warn about casts that do not happen here.
        nn.Module.to(network, memory_format=self.memory_format)
        module: Any
        for module in network.modules():
            if hasattr(module, "use_winograd"):
                module.use_winograd = self.winograd
            if hasattr(module, "use_convolution"):
                module.use_convolution = self.convolve_products
        return network

    def prepare_training(self, network: nn.Module) -> nn.Module:
        """Lay out a network's weights for training, in place; see `prepare`."""
        nn.Module.to(network, memory_format=self.training_memory_format)
        return network

    def autocast(self, dtype: torch.dtype) -> torch.autocast:
        """A context in which a float32 network computes in ``dtype``; float32 changes nothing."""
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def describe(self) -> dict[str, str]:
        """The choices and their reasons, in words."""
        layout = "channels_last" if self.memory_format == torch.channels_last else "contiguous"
        convolution = "torch"
        if self.speeds:
            ways = "Winograd F(4x4, 3x3) from 128 channels and 16x16 pixels up, else torch"
            speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in self.speeds.items())
            convolution = f"{ways if self.winograd else 'torch'} (GFLOP/s a core: {speeds})"
        return {
            "memory format": layout,
            "convolution": convolution,
            "token products": "1x1 convolutions" if self.convolve_products else "torch",
            "attention": self.attention,
            "autocast": _names(self.autocast_dtypes) or "none",
            "fast types": _names(self.fast_dtypes) or "float32 only",
        }


@cache
def choose(device: torch.device) -> ComputePlan:
    """Choose how to compute on a device; measures for some milliseconds the first time."""
    if device.type == "cpu":
        return _cpu(device)
    if device.type == "cuda":
        return _cuda(device)
    return ComputePlan(
        device=device,
        memory_format=torch.contiguous_format,
        training_memory_format=torch.contiguous_format,
        attention="torch's choice",
        winograd=False,
        convolve_products=False,
        speeds={},
        autocast_dtypes=(torch.float16,) if device.type == "mps" else (),
        fast_dtypes=(torch.float16,) if device.type == "mps" else (),
    )


def widest(device: torch.device | str) -> torch.dtype:
    """The most precise type of a device: float64, or float32 where Metal has no other."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def describe(device: torch.device) -> dict[str, str]:
    """What `choose` chose for a device, in words."""
    return choose(device).describe()


def _cpu(device: torch.device) -> ComputePlan:
    speeds = _speeds()
    bfloat16 = speeds["bfloat16 convolution"] >= FAST_GAIN * speeds["convolution"]
    return ComputePlan(
        device=device,
        memory_format=torch.channels_last,
        # A step of a 4 M U-Net (16x16 grid, bfloat16 autocast, batch 64) took 1.16 times as long
        # in channels_last.
        training_memory_format=torch.contiguous_format,
        attention="flash (torch, CPU)",
        winograd=speeds["convolution"] < WINOGRAD_GAIN * speeds["product"],
        convolve_products=speeds["1x1 convolution"] >= PRODUCT_GAIN * speeds["product"],
        speeds=speeds,
        autocast_dtypes=(torch.bfloat16, torch.float16),
        fast_dtypes=(torch.bfloat16,) if bfloat16 else (),
    )


def _cuda(device: torch.device) -> ComputePlan:
    tensor_cores = torch.cuda.get_device_capability(device) >= (7, 0)
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    fast = (torch.bfloat16,) if bfloat16 else ()
    # Tensor cores take channels_last; without it cuDNN transposes around each convolution.
    layout = torch.channels_last if tensor_cores else torch.contiguous_format
    return ComputePlan(
        device=device,
        memory_format=layout,
        training_memory_format=layout,
        attention="torch's choice of flash, cuDNN and memory-efficient",
        winograd=False,
        convolve_products=False,
        speeds={},
        autocast_dtypes=(torch.float16, *fast),
        fast_dtypes=(torch.float16, *fast) if tensor_cores else fast,
    )


def _speeds(rounds: int = 5) -> dict[str, float]:
    """GFLOP/s of torch's convolutions and matrix products on one core.

    Convolutions run in oneDNN, products in BLAS, in torch's own builds MKL. They are about equally
    fast on Intel processors; on some AMD processors MKL takes a path of half that speed or less.
    """
    x, kernel = torch.ones(1, 128, 32, 32), torch.ones(128, 128, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    half_x, half_kernel = x.bfloat16(), kernel.bfloat16()
    a = torch.ones(512, 512)
    tokens, matrix = a[None, None].permute(0, 3, 1, 2), a[:, :, None, None]
    flop = 2 * 32**2 * kernel.numel()
    work: dict[str, tuple[float, Callable[[], Tensor]]] = {
        "convolution": (flop, lambda: F.conv2d(x, kernel, padding=1)),
        "bfloat16 convolution": (flop, lambda: F.conv2d(half_x, half_kernel, padding=1)),
        "product": (2 * 512**3, lambda: a @ a),
        "1x1 convolution": (2 * 512**3, lambda: F.conv2d(tokens, matrix)),
    }
    # In turn, and the best of each: the first calls load libraries. One thread, by its own clock:
    # neighbours on a busy machine must not change the choice.
    (seconds,) = workers(1).map(
        lambda _: [{n: _seconds(run) for n, (_, run) in work.items()} for _ in range(rounds)], [0]
    )
    return {n: 1e-9 * flop / min(s[n] for s in seconds) for n, (flop, _) in work.items()}


def _seconds(work: Callable[[], Tensor]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


@cache
def workers(count: int) -> ThreadPoolExecutor:
    """Threads in which torch computes without sharing the work further.

    torch spreads every operation over all cores and waits for the slowest of them, which on a busy
    machine costs more than many small steps are worth. Let each of these threads do a whole part.
    """
    threads, started = torch.get_num_threads(), Barrier(count)
    pool = ThreadPoolExecutor(count, "genlab-compute", _use_one_thread)
    list(pool.map(lambda _: started.wait(), range(count)))
    # Setting it in one thread also set what threads to come begin with: take that back.
    torch.set_num_threads(threads)
    return pool


def by_rows(network: nn.Module, rows: int, *inputs: Tensor | None, **more: Tensor) -> Tensor:
    """The output of a network for a batch; on a CPU every core computes whole rows of it.

    Only where nothing depends on the thread: without gradients, autocast or compilation.

    Args:
        network: maps every row by itself.
        rows: of the batch. Inputs of so many rows are dealt out, others (a noise level that all
            share, None) go to every part.
        inputs: of the network.
        more: of the network, by name.
    """
    threads = min(torch.get_num_threads(), rows)
    alone = (
        threads == 1
        or any(x is not None and x.device.type != "cpu" for x in inputs)
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or network._compiled_call_impl is not None
    )
    if alone:
        result: Tensor = network(*inputs, **more)
        return result

    @torch.no_grad()  # modes belong to a thread
    def compute(part: slice) -> Tensor:
        def own(x: Tensor | None) -> Tensor | None:
            return x[part] if x is not None and len(x) == rows else x

        output: Tensor = network(*map(own, inputs), **{name: own(x) for name, x in more.items()})
        return output

    size = math.ceil(rows / threads)
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return torch.cat(list(workers(threads).map(compute, parts)))


def _use_one_thread() -> None:
    # A thread takes torch's number over when it first asks for it, whatever was set before.
    torch.get_num_threads()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=workers.cache_clear)  # threads do not survive a fork


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
