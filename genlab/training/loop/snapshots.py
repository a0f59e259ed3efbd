"""Averaged weights stored during a run; any power-function average can be made of them later."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genlab.errors import OutputError
from genlab.files import atomic_path
from genlab.training.loop.ema import PowerAverage, WeightAverage
from genlab.training.loop.state import Progress, save_tensors, writing
from genlab.training.run import Run


@dataclass(frozen=True)
class Snapshot:
    """A stored average.

    Attributes:
        path: of the file.
        images: that the run had seen.
        average: its name, ``halflife`` or ``power-0.050``.
    """

    path: Path
    images: int
    average: str

    @property
    def sigma_rel(self) -> float | None:
        """The width of a power-function average, None for the other kind."""
        kind, _, width = self.average.partition("-")
        return float(width) if kind == "power" else None


def save_snapshots(
    run: Run, averages: Sequence[WeightAverage], progress: Progress, dtype: torch.dtype
) -> None:
    """Store every average as it is now."""
    for average in averages:
        metadata = {
            "average": average.name,
            "images": str(progress.images),
            "step": str(progress.step),
        }
        if isinstance(average, PowerAverage):
            metadata["sigma_rel"] = repr(average.sigma_rel)
        path = run.snapshot_path(progress.images, average.name)
        with writing(path), atomic_path(path) as temporary:
            save_tensors(temporary, average.state_dict(), dtype, metadata)


def list_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, oldest first."""
    snapshots = []
    for path in sorted(folder.glob("*-*.safetensors")):
        images, _, average = path.stem.partition("-")
        if images.isdigit():
            snapshots.append(Snapshot(path, int(images), average))
    return snapshots


def prune_snapshots(folder: Path, images: int) -> None:
    """Remove snapshots later than the checkpoint that a run resumes from: they are made again."""
    for snapshot in list_snapshots(folder):
        if snapshot.images > images:
            try:
                snapshot.path.unlink()
            except OSError as error:
                raise OutputError(f"cannot remove {snapshot.path}: {error.strerror}") from error
