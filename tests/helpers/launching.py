"""Several processes that know of each other, as every launcher starts them."""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_all(
    command: Sequence[str], count: int = 2, environment: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Start a command ``count`` times with what accelerate launch, torchrun and Slurm scripts set.

    The output of each process is read through a pipe.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    base = {**(os.environ if environment is None else environment), **meeting, **size}
    return [
        subprocess.Popen(
            list(command),
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
