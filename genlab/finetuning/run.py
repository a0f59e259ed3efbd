"""The folder of a fine-tuning run, which is an adapter's folder, too.

Beside what `genlab.training.run.Run` lists:

base.json                    name and SHA-256 of the base
adapter_config.json          the adapter as it was when snapshots were last stored
adapter_model.safetensors    its tensors, averaged by half-life
README.md                    its card
"""

import json
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from genlab.checkpoints.loading import load
from genlab.errors import TrainingError
from genlab.files import read_json_object, write_text
from genlab.finetuning.config import FinetuneConfig
from genlab.finetuning.objective import FinetuneObjective
from genlab.generators.base import Generator
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Objective
from genlab.training.run import FREE, Run


class FinetuneRun(Run):
    """The folder of a fine-tuning run; see `Run`.

    Args:
        folder: need not exist.
        base_sha256: of the base that the run is to train; None where it is only read.
    """

    schema: ClassVar[type[TrainConfig]] = FinetuneConfig
    kind: ClassVar[str] = "finetune"
    # The base may have moved: its hash must be the same.
    free: ClassVar[tuple[str, ...]] = (*FREE, "base", "classes.number", "copying.")

    def __init__(self, folder: Path, base_sha256: str | None = None) -> None:
        super().__init__(folder)
        self.base_path = self.folder / "base.json"
        self.base_sha256 = base_sha256

    @override
    def start(self, config: TrainConfig, data: DataMetadata, hardware: str) -> None:
        """The base is recorded, too."""
        assert isinstance(config, FinetuneConfig)
        metadata = {"name": config.base, "sha256": self.base_sha256}
        write_text(self.base_path, json.dumps(metadata, indent=2) + "\n")
        super().start(config, data, hardware)

    def _check_kind(self) -> None:
        if not self.base_path.is_file():
            raise TrainingError(
                f"{self.folder} holds a training run that fine-tunes no model; give another folder"
            )

    def check_base(self, name: str, sha256: str) -> None:
        """Refuse to resume with another base.

        Raises:
            TrainingError: its weights are not those that the run was begun with.
        """
        if not self.base_path.is_file():
            return
        kept: dict[str, Any] = read_json_object(self.base_path)
        if kept.get("sha256") != sha256:
            raise TrainingError(
                f"the run in {self.folder} was begun with the base {kept.get('name')} of SHA-256 "
                f"{str(kept.get('sha256'))[:12]}, and {name} has {sha256[:12]}: its adapter fits "
                "no other; give that base, or another folder with -o"
            )

    @override
    def build_objective(self, config: TrainConfig) -> Objective:
        """The base is loaded for it."""
        assert isinstance(config, FinetuneConfig)
        base: Generator = load(config.base)
        self.check_base(config.base, base.weights_sha256())
        return FinetuneObjective(config, base)


def open_run(folder: Path) -> Run:
    """The run in a folder, of whichever kind it is."""
    run = FinetuneRun(folder)
    return run if run.base_path.is_file() else Run(folder)
