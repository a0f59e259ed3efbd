"""The log of a run: log.jsonl and TensorBoard."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from genlab.errors import ConfigError, OutputError
from genlab.files import write_text


class Log:
    """The lines of log.jsonl, and the same numbers for TensorBoard.

    Args:
        folder: of the run.
        step: where the run goes on; what an earlier process wrote beyond it is dropped, because it
            comes again.
        tensorboard: None writes for TensorBoard when it is installed.

    Raises:
        ConfigError: TensorBoard is wanted but not installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool | None) -> None:
        self.path = folder / "log.jsonl"
        if self.path.exists():
            kept = [line for line in read_log(self.path) if line["step"] <= step]
            write_text(self.path, "".join(map(_line, kept)))
        self._board = _board(folder / "tensorboard", step, tensorboard)

    def write(self, **values: Any) -> None:
        """Add one line; it must have a ``step``."""
        try:
            with self.path.open("a") as file:
                file.write(_line(values))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self._board is not None:
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(name, value, values["step"])

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], step: int) -> None:
        """Show a picture, (H, W, 3) uint8, in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write out what is buffered."""
        if self._board is not None:
            self._board.close()


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


def _board(folder: Path, step: int, enabled: bool | None) -> Any:
    if enabled is False or (enabled is None and find_spec("tensorboard") is None):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter  # an extra that may be missing
    except ImportError as error:
        raise ConfigError(
            "output.tensorboard=true needs TensorBoard; install genlab[tensorboard] or set it to "
            "false"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1)
