"""What a command costs before it computes: seconds of a whole process, and peak memory.

    python benchmarks/startup.py                     # seconds, each command in turn
    python benchmarks/startup.py --memory WORK/      # of a DiT-XL/2 of random weights: 9 GB of disk

Seconds are of the processor and by the clock, of interleaved rounds, beside what importing torch
and diffusers' base class of models takes alone. Memory is the most that a process held at once,
over the size of the weights in float32. Bytecode is written first: an installed package has it.
"""

import argparse
import compileall
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import genlab

REFERENCE = "import torch; from diffusers.models.modeling_utils import ModelMixin"
SNIPPETS = ("import torch", REFERENCE)
COMMANDS = (
    "sample edm-fmnist --seeds 0 --steps 1 -q --overwrite -o OUT",
    "sample edm-fmnist --dry-run",
    "sample edm-fmnits",
    "sample edm-fmnist --classes shoe",
    "sample edm-fmnist --seeds a-b",
    "sample ./nowhere",
    "sample edm-fmnist sampel.x=1",
    "eval edm-fmnits",
    "presets",
    "zoo list",
    "--help",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=Path, metavar="WORK", help="measure memory in this folder")
    arguments = parser.parse_args()
    if arguments.memory is None:
        print_seconds(arguments.rounds)
    else:
        print_memory(arguments.memory)


def print_seconds(rounds: int) -> None:
    for package in genlab.__path__:
        compileall.compile_dir(package, quiet=2)
    processes = {code: ["-c", code] for code in SNIPPETS}
    processes |= {f"genlab {line}": ["-m", "genlab", *line.split()] for line in COMMANDS}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    with tempfile.TemporaryDirectory() as out:
        for number in range(rounds + 1):  # the first fills the file cache
            for name, process in processes.items():
                measured = run_seconds([part.replace("OUT", out) for part in process])
                if number:
                    seconds[name].append(measured)
    print("| command | cpu s | clock s | cpu over ModelMixin |\n| --- | --- | --- | --- |")
    for name, values in seconds.items():
        cpu, clock = (statistics.median(column) for column in zip(*values, strict=True))
        ratios = [own[0] / base[0] for own, base in zip(values, seconds[REFERENCE], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"| {name} | {cpu:.2f} | {clock:.2f} | {spread} |")


def run_seconds(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of the processor and by the clock of a process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], capture_output=True, env=environment, check=False)
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, clock


WRITE_OFFICIAL = """
import sys, torch
from genlab.networks.dit import DiT
torch.manual_seed(0)
network = DiT(32, 4, 8, 1000)
torch.save(network.state_dict(), sys.argv[1])
print(4 * sum(p.numel() for p in network.state_dict().values()))
"""


def print_memory(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    official, folder, out = work / "DiT-XL-2-256x256.pt", work / "dit-xl-2", work / "images"
    written = subprocess.run(
        [sys.executable, "-c", WRITE_OFFICIAL, str(official)],
        capture_output=True,
        text=True,
        check=True,
    )
    weights = int(written.stdout)
    print(f"weights in float32: {weights / 2**20:,.0f} MiB\n")
    print("| command | peak MiB | over the weights | cpu s |\n| --- | --- | --- | --- |")
    for name, command in {
        "ModelMixin": ["-c", REFERENCE],
        "convert": f"-m genlab convert {official} -o {folder} --overwrite".split(),
        "sample": f"-m genlab sample {folder} --seeds 0 --steps 1 --guidance 1 -q -o {out}".split(),
        "doctor": f"-m genlab doctor {folder}".split(),
    }.items():
        peak, seconds = peak_memory(command)
        print(f"| {name} | {peak / 2**20:,.0f} | {peak / weights:.2f} | {seconds:.1f} |")


def peak_memory(command: Sequence[str]) -> tuple[int, float]:
    """The most memory in bytes that a process held, and its seconds of the processor."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode(errors='replace')}")
    return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
