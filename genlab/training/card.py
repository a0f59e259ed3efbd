"""The model card of what a run has trained: its README.md, with the metadata that hubs read."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genlab import __version__
from genlab.config import to_yaml
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import DataMetadata
from genlab.training.loop.logs import read_log
from genlab.training.objectives.base import Objective
from genlab.training.run import Run


def model_card(
    run: Run,
    config: TrainConfig,
    data: DataMetadata,
    objective: Objective,
    choice: object,
    images: int,
    extra_rows: Mapping[str, Any],
    usage: str | None = None,
) -> str:
    """The text of a model card.

    Args:
        run: whose log and machine are described.
        config: of the run.
        data: that it was trained on.
        objective: of the run: what the product is for, and which scores it has.
        choice: which weights, in words.
        images: training time of the weights.
        extra_rows: more rows for the table.
        usage: how to use it (Markdown); None is the objective's.
    """
    lines = read_log(run.log_path) if run.log_path.is_file() else []
    past = [entry for entry in lines if entry["kimg"] * 1000 <= images]
    line: dict[str, Any] = past[-1] if past else {}
    steps = images // config.batch_size
    rows = {
        "Family": config.objective.get("name", objective.family),
        "Data": f"{Path(config.data.path).name}, {data.num_images:,} images, {_shape(data)}",
        "Classes": _classes(config, data),
        "Steps": f"{steps:,} of {config.batch_size} images: {images:,} images",
        "Time": f"{line.get('seconds', 0):,.0f} s",
        "Hardware": run.read_machine().get("hardware", "not noted"),
        "Precision in training": config.mixed_precision.value.replace("no", "float32"),
        "Loss at the end": f"{line['loss']:.4f}" if line else "not logged",
        "Weights": str(choice),
        **_scores(config, objective, past),
        "Licence": config.license,
        **objective.card_rows(),
        **extra_rows,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    # The path of the data on this machine is private.
    shown = to_yaml(_without_folders(config))
    name = run.folder.resolve().name
    return f"""---
license: {json.dumps(config.license.lower())}
library_name: genlab
datasets: [{json.dumps(Path(config.data.path).stem)}]
tags: [{objective.task}, {config.objective.get("name", objective.family)}]
---
# {name}

| | |
|---|---|
{table}

Trained with GenLab {__version__}. {objective.usage if usage is None else usage}

## Configuration

```yaml
{shown}```
"""


def _scores(
    config: TrainConfig, objective: Objective, lines: list[dict[str, Any]]
) -> dict[str, str]:
    """The newest value of each score on held-out images."""
    images = Path(config.validation.path or config.data.path).name
    where = ", ".join(filter(None, (images, config.validation.split)))
    rows = {}
    for name, form in objective.scores.items():
        values = [line[name] for line in lines if name in line]
        if values:
            rows[name.replace("_", " ").capitalize()] = (
                f"{values[-1]:{form}} on {where} (average by half-life)"
            )
    return rows


def _without_folders(config: TrainConfig) -> TrainConfig:
    validation = config.validation
    if validation.path is not None:
        validation = replace(validation, path=Path(validation.path).name)
    data = replace(config.data, path=Path(config.data.path).name)
    return replace(config, data=data, validation=validation)


def _shape(data: DataMetadata) -> str:
    channels, height, width = data.image_shape
    return f"{width}x{height}, {'grey' if channels == 1 else 'RGB' if channels == 3 else channels}"


def _classes(config: TrainConfig, data: DataMetadata) -> str:
    if data.num_classes == 0:
        return "none (unconditional)"
    names = config.class_names or data.class_names
    return f"{data.num_classes}" + (f": {', '.join(names)}" if names else "")
