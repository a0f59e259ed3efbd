"""Checkpoints: everything a run needs to go on, in a folder that is complete or not there.

A state is written under a temporary name and renamed, so a process that dies at any moment leaves
the last complete one.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genlab.errors import GenLabError, OutputError, TrainingError
from genlab.files import make_public

METADATA = "state.json"
_NAME = re.compile(r"\d{9}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: steps done.
        images: images seen.
        seconds: spent training, over all resumptions.
    """

    step: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class State:
    """What a state holds.

    Attributes:
        progress: where the run stood.
        networks: name -> state dict.
        averages: name -> averaged parameters of the main network.
        optimizers: name -> state dict; None was asked for when only weights are wanted.
        scaler: of the gradients, where the run uses float16.
        record: what the log has under way, see `Recorder.state_dict`.
    """

    progress: Progress
    networks: dict[str, dict[str, Tensor]]
    averages: dict[str, dict[str, Tensor]]
    optimizers: dict[str, Any]
    scaler: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)


def save_state(folder: Path, state: State, keep: int) -> Path:
    """Write a state and remove old ones.

    Args:
        folder: of all states of the run.
        state: of now.
        keep: how many of the latest stay.

    Raises:
        OutputError: the disk is full or the folder not writable; the earlier states are untouched.
    """
    path = folder / f"{state.progress.step:09d}"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
        temporary = folder / f".new-{path.name}-{os.getpid()}"
        temporary.mkdir()
        try:
            for kind, group in (("network", state.networks), ("average", state.averages)):
                for name, tensors in group.items():
                    save_tensors(temporary / f"{kind}-{name}.safetensors", tensors)
            rest = {name: getattr(state, name) for name in ("optimizers", "scaler", "record")}
            torch.save(rest, temporary / "optimizers.pt")
            (temporary / METADATA).write_text(json.dumps(asdict(state.progress), indent=2) + "\n")
            _flush(temporary)
            if path.exists():  # this very step, saved by an earlier process
                shutil.rmtree(path)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in states(folder)[:-keep]:
            shutil.rmtree(old)
    return path


def states(folder: Path) -> list[Path]:
    """The complete states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    folders = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and (p / METADATA).is_file()]
    return sorted(folders)


def load_state(path: Path, device: torch.device | str = "cpu") -> State:
    """Read a state.

    Raises:
        TrainingError: a file is missing or damaged.
    """
    try:
        extra = torch.load(path / "optimizers.pt", map_location=device, weights_only=True)
        return State(
            progress=read_progress(path),
            networks=_load_group(path, "network", device),
            averages=_load_group(path, "average", device),
            optimizers=extra["optimizers"],
            scaler=extra["scaler"],
            record=extra.get("record", {}),  # states of before there was one go on, too
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        EOFError,
        SafetensorError,
    ) as error:
        raise TrainingError(
            f"the state {path} cannot be read ({' '.join(str(error).split())[:200]}); remove "
            "this folder to go on from "
            "the state before it, or train into a new folder"
        ) from error


def read_progress(path: Path) -> Progress:
    """Where a run stood when a state was written."""
    return Progress(**json.loads((path / METADATA).read_text()))


def _load_group(path: Path, kind: str, device: torch.device | str) -> dict[str, dict[str, Tensor]]:
    return {
        file.stem.removeprefix(f"{kind}-"): load_file(file, device=str(device))
        for file in sorted(path.glob(f"{kind}-*.safetensors"))
    }


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as safetensors, on the CPU and in plain memory order."""
    plain = {
        name: value.detach().to(device="cpu", dtype=dtype).contiguous()
        for name, value in tensors.items()
    }
    # One entry only: safetensors writes several in any order, and equal runs give equal files.
    header = {"genlab": json.dumps(dict(metadata))} if metadata else None
    save_file(plain, path, metadata=header)
    make_public(path)


def _remove_unfinished(folder: Path) -> None:
    for leftover in folder.glob(".new-*"):  # of a process that died while it wrote
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Have the files on the disk before the rename makes them count: power may fail."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong in writing tensors to ``path`` into one sentence.

    Raises:
        OutputError: says why, and what to do.
    """
    try:
        yield
    except GenLabError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save raises RuntimeError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise OutputError(
            f"cannot write {path}: {reason}; free some space or choose another folder, "
            "then the same command goes on"
        ) from error
