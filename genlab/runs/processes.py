"""The processes of a run: their number and rank under ``accelerate launch``, torchrun or alone."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from genlab.compute import usable_device
from genlab.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among its peers.

    Attributes:
        rank: number of this process, 0 <= rank < count.
        count: number of processes.
        device: where this process computes, or None for the caller's choice.
        wait: returns when all processes have called it.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    wait: Callable[[], None] = field(default=lambda: None)


_NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launched() -> int:
    """How many processes the environment says were launched together.

    Raises:
        ConfigError: what it says is no number, or not enough to meet the others.
    """
    cure = "unset it, or let 'accelerate launch' or torchrun set it"
    numbers = {}
    for name in _NUMBERS:
        text = os.environ.get(name, "")
        if text and not re.fullmatch("[0-9]{1,9}", text.strip()):
            raise ConfigError(
                f"the environment variable {name} must be a whole number, got {text[:40]!r}; {cure}"
            )
        if text:
            numbers[name] = int(text)
    count = numbers.get("WORLD_SIZE", 1)
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if count < 1 or (count > 1 and missing):
        reason = f"and {missing[0]} is not set" if count else "and counts the processes"
        raise ConfigError(f"the environment variable WORLD_SIZE is {count}, {reason}; {cure}")
    if count > 1 and numbers["RANK"] >= count:
        raise ConfigError(
            f"the environment variable RANK is {numbers['RANK']}, and the {count} processes of "
            f"WORLD_SIZE count from 0; {cure}"
        )
    return count


def join(device: str | None = None) -> Processes:
    """Meet the other processes of the launch, if there are any.

    Args:
        device: what the user asked for; ``cpu`` keeps a launch off its GPUs, anything else lets
            accelerate deal the devices out.

    Raises:
        ConfigError: there is no such device, or the environment names no launch that can be met.
    """
    if device is not None:
        usable_device(device)
    if launched() == 1:
        return Processes()
    from accelerate import PartialState  # slow to import, and only a launch needs it

    try:
        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConfigError(
            f"the processes of this launch cannot meet: {reason}; start them with 'accelerate "
            "launch' or torchrun, or unset WORLD_SIZE"
        ) from error
    return Processes(
        state.process_index, state.num_processes, state.device, state.wait_for_everyone
    )
