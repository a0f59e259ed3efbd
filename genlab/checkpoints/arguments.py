"""Read official constructor arguments: JSON, YAML, ``KEY=VALUE`` settings."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from genlab.errors import ConfigError, printable, reason
from genlab.files import MAX_JSON

_MAX_DEPTH = 20
"""Of the arguments; the official constructors' nest twice."""


def read_arguments(file: Path | None, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Read arguments for `genlab.convert`.

    Args:
        file: JSON or YAML with a mapping at the top; None for settings alone.
        settings: ``KEY=VALUE``, values as in YAML; they go over the file's. Where the file keeps
            its arguments under ``kwargs``, plain keys go there, too.

    Raises:
        ConfigError: the file is missing or holds no mapping, or a setting cannot be read.
    """
    arguments = {} if file is None else _read(file)
    try:
        overrides = OmegaConf.to_container(OmegaConf.from_dotlist(list(map(_quoted, settings))))
    except Exception as error:  # beside YAML's own: what Python raises for absurd numbers or nests
        raise ConfigError(
            f"cannot read the settings {printable(', '.join(settings))}: {reason(error)}; write "
            "KEY=VALUE, values as in YAML"
        ) from error
    assert isinstance(overrides, dict)
    flat = {str(key): value for key, value in overrides.items()}
    if isinstance(arguments.get("kwargs"), dict) and "kwargs" not in flat:
        cls = {"cls": flat.pop("cls")} if "cls" in flat else {}
        return {**arguments, **cls, "kwargs": {**arguments["kwargs"], **flat}}
    return {**arguments, **flat}


def _quoted(setting: str) -> str:
    """A setting whose value stays text where YAML would drop the underscores: ``32_64``."""
    key, equals, value = setting.partition("=")
    return f"{key}{equals}'{value}'" if re.fullmatch(r"\d+(?:_\d+)+", value) else setting


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"there is no file {file}; check the path of --config")
    try:
        _check_events(file)
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # beside YAML's own: what Python raises for absurd numbers or nests
        raise ConfigError(
            f"{file} is no readable JSON or YAML: {reason(error)}; write the constructor's "
            "arguments, one KEY: VALUE a line"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} must hold a mapping of arguments, not a {type(content).__name__}"
        )
    return {str(key): value for key, value in content.items()}


def _check_events(file: Path) -> None:
    """Refuse YAML whose unfolding takes more than its text: aliases of aliases, endless nests."""
    if file.stat().st_size > MAX_JSON:
        raise ValueError("it is too large")
    depth = 0
    with file.open(encoding="utf-8") as text:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it refers to other places with *, which arguments never need")  # noqa: TRY004  # every check here speaks through ValueError
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"it nests deeper than {_MAX_DEPTH}")
