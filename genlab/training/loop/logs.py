"""The log of a run: log.jsonl, and accelerate's trackers."""

import json
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers
from jaxtyping import UInt8

from genlab.config import to_plain
from genlab.errors import ConfigError, OutputError, nearest
from genlab.files import write_text
from genlab.training.config import TrainConfig

BOARD = "tensorboard"
PROJECT = "genlab"
"""What runs are filed under, where a tracker has projects."""


class Log:
    """The lines of log.jsonl, and the same numbers for trackers.

    Args:
        folder: of the run.
        step: where the run goes on; what was written beyond it before an interruption is dropped,
            because it comes again.
        config: of the run; ``output`` names the trackers.
        accelerator: of the run.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """

    def __init__(
        self, folder: Path, step: int, config: TrainConfig, accelerator: Accelerator
    ) -> None:
        self.path = folder / "log.jsonl"
        self._accelerator = accelerator
        names = tracker_names(config)
        if self.path.exists():
            kept = [line for line in read_log(self.path) if line["step"] <= step]
            write_text(self.path, "".join(map(_line, kept)))
        self._start(folder, step, names, config)

    def _start(self, folder: Path, step: int, names: list[str], config: TrainConfig) -> None:
        # Set here: who builds an accelerator to measure speed or to validate tracks nothing.
        self._accelerator.log_with = filter_trackers(names, str(folder))
        self._accelerator.project_configuration.logging_dir = str(folder / BOARD)
        run = uuid.uuid5(uuid.NAMESPACE_URL, folder.resolve().as_uri()).hex[:12]
        self._accelerator.init_trackers(
            PROJECT,
            init_kwargs={
                BOARD: {"purge_step": step + 1},
                "wandb": {"name": folder.name, "id": run, "resume": "allow", "dir": str(folder)},
                "trackio": {"name": f"{folder.name}-{run}", "resume": "allow"},
            },
        )
        for tracker in self._accelerator.trackers:
            if tracker.name != BOARD:  # which would file every resumption as another run
                tracker.store_init_configuration(_flat(to_plain(config)))

    def write(self, **values: Any) -> None:
        """Add one line; it must have a ``step``."""
        try:
            with self.path.open("a") as file:
                file.write(_line(values))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        tracked = {name: value for name, value in values.items() if name != "step"}
        self._accelerator.log(tracked, step=values["step"])

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], step: int) -> None:
        """Show a picture, (H, W, 3) uint8, in every tracker that shows any."""
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == BOARD else {}
                tracker.log_images({name: pixels[None]}, step=step, **layout)

    def close(self) -> None:
        """Write out what is buffered."""
        for tracker in self._accelerator.trackers:
            tracker.finish()


def tracker_names(config: TrainConfig) -> list[str]:
    """The trackers of a run, in accelerate's words.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    names = list(dict.fromkeys(config.output.trackers))
    board = config.output.tensorboard
    if board or (board is None and find_spec(BOARD) is not None):
        names = list(dict.fromkeys([BOARD, *names]))
    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    for name in names:
        if name not in known:
            raise ConfigError(f"output.trackers names no tracker {name!r}; {nearest(name, known)}")
        if not filter_trackers([name], "."):
            extra = "genlab[tensorboard]" if name == BOARD else name
            key = "output.tensorboard=false" if name == BOARD else "output.trackers=[]"
            raise ConfigError(f"the tracker {name} is not installed: pip install {extra}, or {key}")
    return names


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; lists as text, as trackers want it."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line cut short by a dying process is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _line(values: Mapping[str, Any]) -> str:
    rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
    return json.dumps(rounded) + "\n"
