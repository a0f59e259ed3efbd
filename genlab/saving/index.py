"""``model_index.json``: the metadata of a pipeline folder, read without torch."""

from pathlib import Path
from typing import Any

from genlab.errors import CheckpointError
from genlab.files import read_json_object

INDEX = "model_index.json"
"""The file that makes a folder a pipeline folder."""
NETWORK = "network"
PIPELINE = "GenLabPipeline"


def read_index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says.

    Raises:
        CheckpointError: it is missing, is not a JSON object, or names no network.
    """
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no model folder: it has no {INDEX}; check the path, "
            "or make one with genlab convert"
        )
    index = read_json_object(path)
    if not is_component(index.get(NETWORK)):
        raise CheckpointError(
            f"{path} names no network; GenLab reads folders of its own pipeline, {PIPELINE}"
        )
    return index


def is_component(value: object) -> bool:
    """Whether an entry names a module and a class."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
