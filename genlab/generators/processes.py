"""One process or many: who this one is, under ``accelerate launch``, torchrun or alone."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


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


def join(device: str | None = None) -> Processes:
    """Meet the other processes of the launch, if there are any.

    Args:
        device: what the user asked for; ``cpu`` keeps a launch off its GPUs, anything else lets
            accelerate deal the devices out.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState  # slow to import, and only a launch needs it

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return Processes(
        state.process_index, state.num_processes, state.device, state.wait_for_everyone
    )
