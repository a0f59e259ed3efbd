"""A summary of an adapter, from its JSON alone.

Nothing heavy is imported: lists of adapters come at once.
"""

from pathlib import Path
from typing import Any

from genlab.errors import CheckpointError, printable
from genlab.files import read_json_object
from genlab.finetuning.adapters.folders import CONFIG, METADATA, TENSORS


def overview(folder: Path) -> dict[str, Any]:
    """The entry of an adapter in a list; not validated.

    Returns:
        ``name``, ``folder``, ``method``, ``base``, ``classes``, ``trained_on_images``, ``bytes``;
        None where the files do not tell. Of damaged ones ``fault`` says why.
    """
    row: dict[str, Any] = {
        "name": printable(folder.resolve().name),
        "folder": str(folder),
        **dict.fromkeys(("method", "base", "classes", "trained_on_images", "bytes", "fault")),
    }
    try:
        config = read_json_object(folder / CONFIG)
        beside = "peft_type" in config and (folder / METADATA).is_file()
        metadata = read_json_object(folder / METADATA) if beside else config
        row["bytes"] = (folder / TENSORS).stat().st_size
    except CheckpointError as error:
        return row | {"fault": printable(str(error))}
    except OSError as error:
        return row | {"fault": f"{folder / TENSORS}: {error.strerror or error}"}
    method, kind = metadata.get("method"), config.get("peft_type")
    named = method.get("name") if isinstance(method, dict) else kind
    base = metadata.get("base", config.get("base_model_name_or_path"))
    return row | {
        "method": printable(named, 40) if isinstance(named, str) else None,
        "base": printable(base, 200) if isinstance(base, str) else None,
        "classes": _count(metadata.get("num_classes")),
        "trained_on_images": _count(metadata.get("trained_on_images")),
    }


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None
