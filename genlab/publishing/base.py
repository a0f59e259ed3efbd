"""The base that a published adapter names: a name that means the same model on every machine."""

import json
from pathlib import Path
from typing import Any

from genlab.checkpoints.bundled import bundled_names
from genlab.checkpoints.hub.names import parse
from genlab.checkpoints.zoo.catalogue import entries
from genlab.errors import ConfigError
from genlab.files import read_json_object
from genlab.finetuning.adapters.folders import CONFIG, METADATA

_PEFT = "base_model_name_or_path"


def named_base(folder: Path, wanted: str | None) -> tuple[str, dict[str, bytes]]:
    """The base of an adapter as others find it, and the files that say so.

    Args:
        folder: of the adapter.
        wanted: in place of the name that it has.

    Returns:
        The name; and file -> content, of those that must change for it.

    Raises:
        ConfigError: it is a path, or no name at all.
        CheckpointError: a file is damaged.
    """
    config = read_json_object(folder / CONFIG)
    has_metadata = (folder / METADATA).is_file()
    metadata = read_json_object(folder / METADATA) if has_metadata else config
    own = metadata.get(_PEFT) if "peft_type" in metadata else metadata.get("base")
    base = wanted or own
    if not isinstance(base, str) or not _is_public(base):
        raise ConfigError(
            f"the adapter's base is {base!r}, which means nothing on other machines; push the base "
            "first, then name it: --base OWNER/NAME (or a bundled model, or one of the zoo)"
        )
    changed: dict[str, dict[str, Any]] = {}
    if "peft_type" in config and config.get(_PEFT) != base:
        changed[CONFIG] = {**config, _PEFT: base}
    if "peft_type" not in metadata and metadata.get("base") != base:
        changed[METADATA if has_metadata else CONFIG] = {**metadata, "base": base}
    return base, {
        name: (json.dumps(values, indent=2) + "\n").encode() for name, values in changed.items()
    }


def _is_public(base: str) -> bool:
    if base in bundled_names() or base in entries():
        return True
    return parse(base) is not None and not Path(base).exists()
