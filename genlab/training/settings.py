"""What a training configuration leaves to defaults: options of its objective and its network."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from genlab.training.config import TrainConfig
from genlab.training.objective import NETWORKS, OBJECTIVES


def left_out(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> default of each option that ``objective`` and ``network`` do not name.

    Arguments of a network that follow from the data have no default here.
    """
    found: dict[str, Any] = {}
    for section, registry in (("objective", OBJECTIVES), ("network", NETWORKS)):
        entry: Mapping[str, Any] = getattr(config, section)
        for name, default in _defaults(registry[str(entry["name"])]).items():
            if name not in entry and _is_setting(default):
                found[f"{section}.{name}"] = default
    return found


def _defaults(built: Any) -> dict[str, Any]:
    parameters = inspect.signature(built).parameters.items()
    return {name: each.default for name, each in parameters if name != "self"}


def _is_setting(value: Any) -> bool:
    """Whether a default can be written as YAML."""
    if isinstance(value, list | tuple):
        return all(map(_is_setting, value))
    if isinstance(value, Mapping):
        return all(map(_is_setting, value.values()))
    return value is None or (isinstance(value, bool | int | float | str) and not _is_empty(value))


def _is_empty(value: Any) -> bool:
    return value is inspect.Parameter.empty or value is dataclasses.MISSING
