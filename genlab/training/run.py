"""The folder of a run: its settings, the metadata of its data, and its results.

config.yaml      the merged configuration
data.json        metadata of the training data
machine.json     what it was trained on, and with which versions
log.jsonl        one line every output.log_steps steps
autoencoder/     of a run on latents
state/           states to go on from, one folder each
snapshots/       averaged weights, one safetensors file for each average and time
previews/        grids of samples
tensorboard/     where TensorBoard is installed
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from genlab import __version__
from genlab.config import load, read_yaml, to_plain, to_yaml
from genlab.errors import TrainingError
from genlab.files import write_text
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import Objective, build_objective

FREE = (
    "output.",
    "data.path",
    "data.max_memory_gib",
    "data.num_workers",
    "class_names",
    "sampler.",
    "validation.",
    "stopping.",
    "license",
)
"""Settings that may be changed when a run is resumed: they do not change its numbers.

`Run.check` adds ``gradient_accumulation`` for objectives that allow it: other micro-batches draw
other random numbers, and nothing else changes.
"""


class Run:
    """The folder of a run.

    Args:
        folder: need not exist.

    Attributes:
        schema: what its config.yaml fills.
        kind: the folder of presets that such configurations stand in.
        free: settings that may be changed when it is resumed, as key or beginning of a key.
    """

    schema: ClassVar[type[TrainConfig]] = TrainConfig
    kind: ClassVar[str] = "train"
    free: ClassVar[tuple[str, ...]] = FREE

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.config_path = self.folder / "config.yaml"
        self.data_path = self.folder / "data.json"
        self.machine_path = self.folder / "machine.json"
        self.log_path = self.folder / "log.jsonl"
        self.states = self.folder / "state"
        self.snapshots = self.folder / "snapshots"
        self.previews = self.folder / "previews"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config_path.is_file()

    def start(self, config: TrainConfig, data: DataMetadata, hardware: str) -> None:
        """Write the run's settings; see `check`.

        Args:
            config: merged.
            data: metadata of the training data.
            hardware: what it trains on, in words.
        """
        machine = {"hardware": hardware, "genlab": __version__, "torch": version("torch")}
        write_text(self.machine_path, json.dumps(machine, indent=2) + "\n")
        write_text(self.data_path, json.dumps(asdict(data), indent=2) + "\n")
        write_text(self.config_path, to_yaml(config))

    def check(self, config: TrainConfig, data: DataMetadata, recuttable: bool = True) -> None:
        """Refuse to resume a run that was started with other settings.

        Args:
            config: merged.
            data: metadata of the training data.
            recuttable: of the objective.

        Raises:
            TrainingError: a setting that matters, or the data, differ from those of the start.
        """
        if not self.exists:
            return
        old = _flat(to_plain(self.read_config()))
        new = _flat(to_plain(config))
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key) and not self._is_free(key, config, recuttable):
                raise TrainingError(
                    f"{self.folder} holds a run with {key}={old.get(key)}, now it is "
                    f"{new.get(key)}; set it back to go "
                    "on, or train into another folder with -o"
                )
        if self.data_path.is_file():
            before = asdict(self.read_data())
            for key, value in asdict(data).items():
                if before[key] != value and key != "class_names":
                    raise TrainingError(
                        f"the run in {self.folder} was begun on other data: {key} was "
                        f"{before[key]}, now it is {value}; "
                        "set data.path back to go on, or train into another folder with -o"
                    )

    def read_config(self) -> TrainConfig:
        """The run's settings.

        Raises:
            TrainingError: there is no run in this folder.
        """
        if not self.exists:
            raise TrainingError(
                f"{self.folder} holds no training run (no config.yaml); check the path"
            )
        self._check_kind()
        return load(self.schema, str(self.config_path), self.kind)

    def _check_kind(self) -> None:
        """Refuse a folder whose run is of another kind."""
        if "base" in read_yaml(self.config_path):
            raise TrainingError(
                f"{self.folder} holds a fine-tuning run, which is a model by itself and goes on "
                "with 'genlab finetune'; give another folder"
            )

    def build_objective(self, config: TrainConfig) -> Objective:
        """The objective of the run.

        Args:
            config: what `read_config` gave.
        """
        return build_objective(config.objective)

    def read_data(self) -> DataMetadata:
        """The metadata of the training data."""
        metadata = json.loads(self.data_path.read_text())
        names = metadata["class_names"]
        return DataMetadata(
            num_images=metadata["num_images"],
            image_shape=tuple(metadata["image_shape"]),
            num_classes=metadata["num_classes"],
            class_names=None if names is None else tuple(names),
            autoencoder=metadata.get("autoencoder"),
        )

    def _is_free(self, key: str, config: TrainConfig, recuttable: bool) -> bool:
        if key == "gradient_accumulation":
            return recuttable
        # A run may be made longer, unless its learning rate was planned for its length.
        if key == "duration_kimg":
            decay = config.schedule.decay.value
            return decay == "constant" or config.schedule.decay_kimg is not None
        return key.startswith(self.free)

    def read_machine(self) -> dict[str, str]:
        """The hardware of the run."""
        if not self.machine_path.is_file():
            return {}
        machine: dict[str, str] = json.loads(self.machine_path.read_text())
        return machine

    def snapshot_path(self, images: int, average: str) -> Path:
        """Where an average is stored, for instance ``snapshots/000512000-halflife.safetensors``."""
        return self.snapshots / f"{images:09d}-{average}.safetensors"


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value."""

    def items(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                yield from items(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield prefix, value

    return dict(items("", config))
