"""The options of an objective that a training configuration leaves at their defaults."""

import inspect
from collections.abc import Mapping
from typing import Any

from genlab.training.config import TrainConfig
from genlab.training.objectives.base import OBJECTIVES


def left_out(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> default of each option that ``objective`` does not name.

    A network's arguments follow in part from the data, so that they have no defaults to tell.
    """
    options = inspect.signature(OBJECTIVES[str(config.objective["name"])]).parameters
    return {
        f"objective.{name}": option.default
        for name, option in options.items()
        if name not in config.objective and _is_setting(option.default)
    }


def _is_setting(value: Any) -> bool:
    """Whether a default can be written as YAML."""
    if isinstance(value, list | tuple):
        return all(map(_is_setting, value))
    if isinstance(value, Mapping):
        return all(map(_is_setting, value.values()))
    return value is None or isinstance(value, bool | int | float | str)
