"""Typed values: dataclasses are schemas, plain mappings fill them, OmegaConf checks the types.

What does not fit is named: the setting, where it was given, what it takes instead, and the nearest
right name. Text is text: OmegaConf's interpolation (``${oc.env:HOME}``) is refused, since what a
downloaded file says must not read the environment.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from omegaconf import MissingMandatoryValue, OmegaConf, read_write
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from genlab.errors import ConfigError, nearest

T = TypeVar("T")

MAX_DEPTH = 32
"""Levels of nesting; a sampler has about five, and Python's own recursion ends at some hundred."""

MAX_VALUES = 100_000
MAX_BITS = 64

WORDS = {
    False: ("no", "off", "false"),
    True: ("yes", "on", "true"),
}
"""What YAML reads as a boolean; see `_as_meant`."""


def make(schema: type[T], values: Mapping[str, Any], source: str, place: str = "") -> T:
    """Fill a dataclass, whose own ``__post_init__`` checks what types cannot say.

    Args:
        schema: the dataclass; what is left out takes its default.
        values: its fields, nested dataclasses as mappings. Text becomes a number where the field is
            one; objects are left as they are where the field takes any value.
        source: where the values come from, as messages begin.
        place: the key of all of them in a configuration, such as ``sampler.guidance.0``.

    Raises:
        ConfigError: a field is unknown, has no value or one of another type.
    """
    check(schema, values, source)
    try:
        return typing.cast(T, OmegaConf.to_object(_structured(schema, values)))
    except MissingMandatoryValue as error:
        key = error.full_key or error.key
        full = f"{place}.{key}" if place else key
        raise ConfigError(f"{source}: {key} has no value; add {full}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error


def check(schema: type, values: Mapping[str, Any], source: str) -> None:
    """Refuse values that do not fit a dataclass; any of them may still be missing.

    Raises:
        ConfigError: see `make`.
    """
    _check_fields(schema, source)
    check_plain(values, source)
    _reject_booleans(schema, values, source, "")
    try:
        _structured(schema, values)
    except ConfigKeyError as error:
        owner = error.object_type if _is_schema(error.object_type) else schema
        key = str(error.full_key or error.key)
        names = [field.name for field in dataclasses.fields(typing.cast(Any, owner))]
        last = key.rpartition(".")[2]
        raise ConfigError(
            f"{source}: there is no setting {key!r}; {nearest(last, names)}"
        ) from error
    except OmegaConfBaseException as error:
        key, value = _culprit(schema, values)
        expected = takes(hint_of(schema, key.split(".")))
        raise ConfigError(f"{source}: {key} takes {expected}, not {_shown(value)}") from error


def _check_fields(schema: type, source: str) -> None:
    """Refuse a dataclass (of a plug-in, say) that no mapping could ever fill."""
    try:
        fields_of(schema)
        OmegaConf.structured(schema, flags={"allow_objects": True})
    except (NameError, TypeError, ValueError, OmegaConfBaseException) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConfigError(
            f"{source}: the fields of {schema.__module__}.{schema.__qualname__} cannot be settings "
            f"({reason}); give each a type of numbers, text, booleans, lists or mappings of them, "
            "or Any"
        ) from error


def check_plain(values: Any, source: str) -> None:
    """Refuse values that no setting can have.

    Args:
        values: nested mappings and lists; other values are looked at, objects are not.
        source: where they come from, as messages begin.

    Raises:
        ConfigError: text that would be interpolated, a key that is no text or number, a whole
            number of more than 64 bits, or more values, or deeper ones, than `MAX_VALUES` and
            `MAX_DEPTH`.
    """
    for text in _scalars(values, source):
        if isinstance(text, str) and "${" in text:
            raise ConfigError(
                f"{source}: {_shown(text)} would be interpolated, which GenLab does not do; write "
                "the value itself"
            )
        if isinstance(text, int) and not isinstance(text, Enum) and text.bit_length() > MAX_BITS:
            raise ConfigError(
                f"{source}: a whole number of {text.bit_length()} bits is larger than any setting "
                "can be; check its digits, or write a large number as 1e30"
            )


def _scalars(values: Any, source: str) -> Iterator[Any]:
    """What stands in nested containers, keys included; refused where it has no end."""
    stack, count = [(values, 0)], 0
    while stack:
        value, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"{source}: it is nested more than {MAX_DEPTH} deep; write it flatter"
            )
        if count > MAX_VALUES:
            raise ConfigError(f"{source}: it holds more than {MAX_VALUES:,} values; leave some out")
        if isinstance(value, Mapping):
            for key in value:
                if isinstance(key, str | int | float | Enum):
                    continue
                raise ConfigError(
                    f"{source}: {_shown(str(key))} is no name of a setting; write KEY: VALUE"
                )
            stack += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list | tuple):
            stack += [(each, depth + 1) for each in value]
        else:
            yield value


def _shown(value: Any) -> str:
    """A value in a message, cut short."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def fields_of(hint: Any) -> dict[str, Any]:
    """Field -> its type, of a dataclass; nothing for any other type."""
    return typing.get_type_hints(hint) if _is_schema(hint) else {}


def hint_of(schema: type, keys: Sequence[str]) -> Any:
    """The type that the schema gives to a dotted key, or None where it says nothing."""
    hint: Any = schema
    for key in keys:
        schema_or_none = dataclass_in(hint)
        if schema_or_none is not None:
            hint = fields_of(schema_or_none).get(key)
        elif key.isdigit():
            hint = next(iter(get_args(without_none(hint))), None)
        else:
            return None
    return hint


def without_none(hint: Any) -> Any:
    """``X | None`` as X; anything else as it is."""
    if get_origin(hint) in {Union, types.UnionType}:
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def dataclass_in(hint: Any) -> type | None:
    """The dataclass that a type is, or may be."""
    inner = without_none(hint)
    return inner if _is_schema(inner) else None


def wants_mapping(hint: Any) -> bool:
    """Whether a value of this type is written as a mapping."""
    inner = without_none(hint)
    return _is_schema(inner) or (get_origin(inner) or inner) in {dict, Mapping}


def _is_schema(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def choices(hint: Any) -> tuple[str, ...]:
    """The words that a setting of this type may be; none where it is no choice among words."""
    inner = without_none(hint)
    if get_origin(inner) is Literal:
        words = get_args(inner)
        return words if all(isinstance(word, str) for word in words) else ()
    if isinstance(inner, type) and issubclass(inner, Enum):
        return tuple(member.name for member in inner)
    return ()


def is_textual(hint: Any) -> bool:
    """Whether a setting of this type is text, a path, or a choice among words."""
    inner = without_none(hint)
    return inner in (str, Path) or bool(choices(inner))


def takes(hint: Any) -> str:
    """What a setting of this type may be, in words; null apart."""
    inner = without_none(hint)
    if get_origin(inner) in {Union, types.UnionType}:
        return " or ".join(takes(each) for each in get_args(inner) if each is not type(None))
    if inner is Any:
        return "any value"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
    }
    if inner in words:
        return words[inner]
    if get_origin(inner) is Literal:
        return f"one of {', '.join(map(str, get_args(inner)))}"
    if isinstance(inner, type) and issubclass(inner, Enum):
        return f"one of {', '.join(member.name for member in inner)}"
    if get_origin(inner) in {list, tuple, Sequence}:
        named = get_origin(inner) is list and wants_mapping(get_args(inner)[0])
        return "a list of names or mappings" if named else "a list"
    return "a mapping (KEY: VALUE)" if wants_mapping(inner) else "another type"


def _reject_booleans(hint: Any, layer: Mapping[str, Any], source: str, path: str) -> None:
    """Refuse a boolean where text or a number stands; OmegaConf would make it 'False' or 0."""
    for key, inner in fields_of(hint).items():
        value = layer.get(key)
        if isinstance(value, bool) and without_none(inner) in {str, Path, int, float}:
            raise ConfigError(
                f"{source}: {path}{key} takes {takes(inner)}, not a boolean; YAML reads yes, no, "
                "on and off as booleans, so put such a word in quotes"
            )
        if isinstance(value, Mapping) and (schema := dataclass_in(inner)):
            _reject_booleans(schema, value, source, f"{path}{key}.")


def _structured(schema: type, values: Mapping[str, Any]) -> Any:
    """The typed OmegaConf node of plain values."""
    try:
        # Objects (a classifier, say) stand where a field takes any value. The node keeps this very
        # dict and changes it: each needs its own.
        values = _as_meant(schema, values)
        node = OmegaConf.structured(schema, flags={"allow_objects": True})
        with read_write(node):
            for key, hint in fields_of(schema).items():
                # What is free is given whole: options that a default holds belong to its name.
                if isinstance(values.get(key), Mapping) and _is_free(hint):
                    node[key] = {}
        return OmegaConf.merge(node, values)
    except OmegaConfBaseException:  # some of them are a TypeError or a ValueError too
        raise
    except (TypeError, ValueError) as error:
        raise ValidationError(str(error)) from error


def _as_meant(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that YAML misread, corrected by the type in the schema.

    A boolean is the one word of a choice that YAML reads so (``no``, ``off``); ``1e3`` is a whole
    number where one is wanted.
    """
    result = dict(values)
    for key, hint in fields_of(schema).items():
        value = result.get(key)
        if isinstance(value, bool):
            words = [word for word in WORDS[value] if word in choices(hint)]
            result[key] = words[0] if len(words) == 1 else value
        elif isinstance(value, float) and value.is_integer() and without_none(hint) is int:
            result[key] = int(value)
        elif isinstance(value, Mapping) and (inner := dataclass_in(hint)) is not None:
            result[key] = _as_meant(inner, value)
    return result


def _is_free(hint: Any) -> bool:
    """Whether a value of this type is a mapping that no dataclass describes."""
    return wants_mapping(hint) and dataclass_in(hint) is None


def _culprit(schema: type, values: Mapping[str, Any]) -> tuple[str, Any]:
    """The dotted key and value that the typed configuration refuses."""
    for key, value in values.items():
        try:
            _structured(schema, {key: value})
        except OmegaConfBaseException:
            inner = dataclass_in(fields_of(schema).get(key))
            if inner is not None and isinstance(value, Mapping):
                path, value = _culprit(inner, value)
                return f"{key}.{path}", value
            return key, value
    raise AssertionError("the whole was refused but each part accepted")
