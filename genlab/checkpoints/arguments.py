"""Official constructor arguments as people write them: JSON, YAML, ``KEY=VALUE`` settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genlab.errors import ConfigError


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
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(settings)))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(
            f"cannot read the settings {', '.join(settings)}: {_line(error)}"
        ) from error
    assert isinstance(given, dict)
    flat = {str(key): value for key, value in given.items()}
    if isinstance(arguments.get("kwargs"), dict) and "kwargs" not in flat:
        cls = {"cls": flat.pop("cls")} if "cls" in flat else {}
        return {**arguments, **cls, "kwargs": {**arguments["kwargs"], **flat}}
    return {**arguments, **flat}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {file}; check the path of --config") from error
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{file} is no readable JSON or YAML: {_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} must hold a mapping of arguments, not a {type(content).__name__}"
        )
    return {str(key): value for key, value in content.items()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
