"""Strict JSON: infinite numbers, invisible characters and duplicate keys are errors."""

import base64
import json
import math
from pathlib import Path
from typing import Any, NoReturn

from genlab.errors import EvaluationError
from genlab.files import check_regular

PNG = b"\x89PNG\r\n\x1a\n"
MAX_DEPTH = 32
"""Sampler configs nest about five deep; far beyond that Python's own recursion ends."""


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        EvaluationError: it cannot be read or is not whole, valid JSON; names the file.
    """
    check_regular(Path(path), EvaluationError)
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise EvaluationError(f"{path} is nested too deeply to be a record") from error
    except json.JSONDecodeError as error:
        raise EvaluationError(
            f"{path} is not valid JSON: {error}; it was cut off or merged badly"
        ) from error
    except ValueError as error:  # not UTF-8, or one of the two below
        raise EvaluationError(f"{path} is not valid JSON: {error}") from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What an object holds; a bad merge leaves keys twice, and JSON takes the last in silence."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!a} stands twice")
    return members


def check_name(value: Any, where: str) -> None:
    """Text that may stand in a table and a terminal: no control characters, nothing invisible."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise EvaluationError(f"{where} must be printable text, got {shown(value)}")


def check_text(value: Any, where: str) -> None:
    """Text of any kind."""
    if not isinstance(value, str):
        raise EvaluationError(f"{where} must be text, got {kind(value)}")
    _check_values(value, where)


def check_picture(value: Any, where: str) -> None:
    """Empty, or a PNG as base64 text."""
    check_text(value, where)
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise EvaluationError(f"{where} is not base64 text: {error}") from error
    if data and not data.startswith(PNG):
        raise EvaluationError(f"{where} must be a PNG as base64 text, and is another format")


def check_metadata(value: Any, where: str) -> None:
    """An object with any values that can be written again."""
    if not isinstance(value, dict):
        raise EvaluationError(f"{where} must be an object, got {kind(value)}")
    _check_values(value, where)


def _check_values(value: Any, where: str, depth: int = 0) -> None:
    """Numbers are finite and texts can be written as UTF-8, wherever they stand."""
    if depth > MAX_DEPTH:
        raise EvaluationError(f"{where[:200]} is nested too deeply to be part of a record")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_values(key, where)
            _check_values(inner, f"{where}.{shown(key)[1:-1]}", depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner, where, depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise EvaluationError(f"{where} holds half of a character (a lone surrogate)")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number(value, where)


def number(value: Any, where: str) -> float:
    """A finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise EvaluationError(f"{where} must be a number, got {shown(value)}")
    try:
        as_float = float(value)
    except OverflowError:  # an integer of more than 308 digits
        as_float = math.inf
    if not math.isfinite(as_float):
        raise EvaluationError(f"{where} must be a finite number, got {shown(value)}")
    return as_float


def kind(value: Any) -> str:
    """What sort of JSON value this is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value in an error message: short, and harmless in a terminal."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
