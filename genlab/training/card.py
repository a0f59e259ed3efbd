"""The model card of a trained generator: its README.md, with the metadata that hubs read."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genlab import __version__
from genlab.config import to_yaml
from genlab.training.batches import DataFacts
from genlab.training.config import TrainConfig
from genlab.training.logs import read_log
from genlab.training.run import Run


def model_card(
    run: Run,
    config: TrainConfig,
    data: DataFacts,
    choice: object,
    images: int,
    facts: Mapping[str, Any],
) -> str:
    """The text of a model card.

    Args:
        run: where its log and the machine it ran on are noted.
        config: of the run.
        data: that it was trained on.
        choice: which weights, in words.
        images: training time of the weights.
        facts: more rows for the table.
    """
    lines = read_log(run.log_path) if run.log_path.is_file() else []
    line: dict[str, Any] = next(
        (entry for entry in reversed(lines) if entry["kimg"] * 1000 <= images), {}
    )
    steps = images // config.batch_size
    rows = {
        "Family": config.objective.get("name", ""),
        "Data": f"{Path(config.data.path).name}, {data.num_images:,} images, {_shape(data)}",
        "Classes": _classes(config, data),
        "Steps": f"{steps:,} of {config.batch_size} images: {images:,} images",
        "Time": f"{line.get('seconds', 0):,.0f} s",
        "Hardware": run.read_machine().get("hardware", "not noted"),
        "Precision in training": config.mixed_precision.value.replace("no", "float32"),
        "Loss at the end": f"{line['loss']:.4f}" if line else "not logged",
        "Weights": str(choice),
        "Licence": config.license,
        **facts,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    # Where the data lay on somebody's machine is nobody else's business.
    shown = to_yaml(replace(config, data=replace(config.data, path=Path(config.data.path).name)))
    name = run.folder.resolve().name
    return f"""---
license: {json.dumps(config.license.lower())}
library_name: genlab
datasets: [{json.dumps(Path(config.data.path).stem)}]
tags: [image-generation, {config.objective.get("name", "")}]
---
# {name}

| | |
|---|---|
{table}

Trained with GenLab {__version__}. To draw samples:

```
genlab sample PATH_TO_THIS_FOLDER --seeds 0-63 -o samples/
```

## Configuration

```yaml
{shown}```
"""


def _shape(data: DataFacts) -> str:
    channels, height, width = data.image_shape
    return f"{width}x{height}, {'grey' if channels == 1 else 'RGB' if channels == 3 else channels}"


def _classes(config: TrainConfig, data: DataFacts) -> str:
    if data.num_classes == 0:
        return "none (unconditional)"
    names = config.class_names or data.class_names
    return f"{data.num_classes}" + (f": {', '.join(names)}" if names else "")
