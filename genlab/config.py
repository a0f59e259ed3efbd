"""Typed configurations: dataclasses are the schema, YAML presets and dotted overrides fill them.

A configuration is put together in layers, each over the ones before it: the schema's defaults, the
caller's defaults, a YAML file or a shipped preset, then the overrides in their order. Each layer is
checked by itself, so that a wrong key or type names where it stands. Three rules beyond plain
merging:

- Where the schema wants a mapping, the name of a preset stands for the preset: ``sampler=edm-heun``
  reads ``configs/sampler/edm-heun.yaml`` in place of the whole mapping.
- So does the path of a YAML file, in an override: ``sampler.schedule=levels.yaml``.
- In a free mapping (one that no dataclass describes), ``name`` says what the other keys belong to,
  so another ``name`` drops them: ``sampler.solver.name=euler`` does not keep Heun's options. Text
  in its place is the name (``sampler.solver=euler``), and one name or named mapping in the place of
  a list of them is the whole list (``sampler.guidance=cfg``).
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf

import genlab
from genlab import schema as schemas
from genlab import yaml_text
from genlab.errors import ConfigError, UnknownNameError, nearest
from genlab.schema import check_plain

T = TypeVar("T")


class _Whole(dict[str, Any]):
    """A mapping that takes the place of what it is merged over (a preset named in its place)."""


def load(
    schema: type[T],
    spec: str | None,
    kind: str,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """Put a configuration together and check it.

    Args:
        schema: the dataclass to fill.
        spec: a ``.yaml`` file, or the name of a preset (with or without ``configs/``, the kind and
            ``.yaml``); None reads no file.
        kind: the folder of presets below ``configs/``.
        overrides: ``a.b.0.c=value``, later ones win; values are YAML, an empty one is null. Text
            and choices are as they are typed, see `genlab.yaml_text`.
        defaults: what stands below the file, for instance a model's own sampler.

    Raises:
        ConfigError: a key, type or value is wrong; the message names it, where it stands, and the
            nearest right one.
        UnknownNameError: there is no such preset.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if defaults is not None:
        layers.append(("the defaults", defaults))
    if spec is not None:
        layers.append(read_spec(kind, spec, schema))
    source = layers[-1][0] if layers else "the configuration"
    layers += [(f"the setting {text!r}", _override(schema, text)) for text in overrides]
    return fill(schema, layers, source)


def fill(
    schema: type[T],
    layers: Sequence[tuple[str, Mapping[str, Any]]],
    source: str = "the configuration",
) -> T:
    """Fill a dataclass from mappings, each over the ones before it.

    Args:
        schema: the dataclass; its defaults stand below all layers.
        layers: where each comes from, for messages, and what it says.
        source: what is to blame where only all of them together are wrong.

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    merged = _plain(OmegaConf.structured(schema))
    for where, layer in layers:
        merged = _apply(schema, merged, layer, where)
    return schemas.make(schema, merged, source)


def to_yaml(config: Any) -> str:
    """A configuration (dataclass or mapping) as YAML, ready for ``--config``."""
    return yaml_text.dump(to_plain(config))


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration (dataclass or mapping) as plain dicts, lists and numbers, for JSON."""
    return typing.cast(dict[str, Any], _as_plain(config))


def _as_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _as_plain(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _as_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(each) for each in value]
    return value.name if isinstance(value, Enum) else value


def setting_text(key: str, value: Any) -> str:
    """``KEY=VALUE`` as an override reads it.

    >>> setting_text("a.b", [1.5, None]), setting_text("c", True), setting_text("d", float("inf"))
    ('a.b=[1.5, null]', 'c=true', 'd=.inf')
    """
    return f"{key}={yaml_text.one_line(_as_plain(value))}"


def preset_names(kind: str) -> list[str]:
    """The shipped presets of one kind, sorted."""
    return sorted(path.stem for folder in _folders(kind) for path in folder.glob("*.yaml"))


def preset_kinds() -> list[str]:
    """The kinds of presets (the folders below ``configs/``) that ship any, sorted."""
    kinds = {path.parent.name for folder in _folders("") for path in folder.glob("*/*.yaml")}
    return sorted(kinds)


def preset_path(kind: str, name: str) -> Path:
    """Where a shipped preset lies."""
    for folder in _folders(kind):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    names = preset_names(kind)
    raise UnknownNameError(f"there is no {kind} preset {name!r}; {nearest(name, names)}")


def read_preset(kind: str, name: str, schema: type | None = None) -> dict[str, Any]:
    """A shipped preset as plain dicts and lists; for ``schema`` see `read_yaml`."""
    return read_yaml(preset_path(kind, name), schema)


def read_spec(kind: str, spec: str, schema: type | None = None) -> tuple[str, dict[str, Any]]:
    """Read what ``--config SPEC`` means: (where it was read, what it says).

    A ``.yaml`` file that exists is read as it is; otherwise a leading ``configs/`` (and kind) and a
    trailing ``.yaml`` are dropped and what is left names a shipped preset. For ``schema`` see
    `read_yaml`.
    """
    path = Path(spec)
    is_yaml = path.suffix in {".yaml", ".yml"}
    if is_yaml and path.is_file():
        return spec, read_yaml(path, schema)
    name = spec.removeprefix("configs/").removeprefix(f"{kind}/").removesuffix(".yaml")
    names = preset_names(kind)
    if name not in names:
        problem = "no such file, and no" if is_yaml else "there is no"
        raise UnknownNameError(
            f"--config {spec}: {problem} {kind} preset {name!r}; {nearest(name, names)}"
        )
    return f"the {kind} preset {name!r}", read_preset(kind, name, schema)


def read_yaml(path: Path, schema: type | None = None) -> dict[str, Any]:
    """A YAML file as plain dicts and lists; ``1e-4`` is a number (to plain YAML it is text).

    Args:
        path: the file.
        schema: the dataclass that it is to fill: its text and choices are kept as they are typed.

    Raises:
        ConfigError: it cannot be read, or holds something else than settings.
    """
    content = load_yaml(path, schema)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings (KEY: VALUE), not a list or a single value")
    check_plain(content, str(path))
    return content


def load_yaml(path: Path, schema: type | None = None) -> Any:
    """What a YAML file holds, whatever it is; nothing in it is interpolated.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return yaml_text.parse(text, str(path), schema)


def _folders(kind: str) -> list[Path]:
    """``configs/<kind>`` in the installed package or the checkout (see ``genlab/__init__.py``)."""
    folders = [Path(root) / "configs" / kind for root in genlab.__path__]
    return [folder for folder in folders if folder.is_dir()][:1]


def _plain(node: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    return typing.cast(dict[str, Any], plain)


def _override(schema: type, text: str) -> dict[str, Any]:
    """``a.b=value`` as the nested layer ``{"a": {"b": value}}``."""
    path, equals, value = text.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{text!r} is not a setting: write KEY=VALUE, for instance batch_size=8")
    hint = schemas.hint_of(schema, keys)
    layer = yaml_text.parse_value(value, f"the value of {text!r}", hint)
    check_plain(layer, f"the setting {text!r}")
    if isinstance(layer, str) and _is_file_of_settings(schema, keys, layer):
        layer = _Whole(read_yaml(Path(layer)))
    for key in reversed(keys):
        layer = {key: layer}
    return typing.cast(dict[str, Any], layer)


def _is_file_of_settings(schema: type, keys: Sequence[str], text: str) -> bool:
    """Whether text names a YAML file in the place of a mapping, such as a schedule or a sampler.

    Only who runs a program may name files: within a file, text that ends so is a name.
    """
    hint: Any = schema
    rest = list(keys)
    while rest and (inner := schemas.dataclass_in(hint)) is not None:
        hint = schemas.fields_of(inner).get(rest.pop(0))
    # In a free mapping: a named mapping inside it, or one of a list of them; not an option of one.
    place = not rest or (len(rest) == 1 and rest != ["name"]) or rest[-1].isdigit()
    is_yaml = text.endswith((".yaml", ".yml")) and Path(text).is_file()
    return schemas.wants_mapping(hint) and place and is_yaml


def _apply(
    schema: type, merged: dict[str, Any], layer: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Merge one layer and check the result, blaming the layer."""
    result = _merge(merged, _expand(schema, dict(layer)), schema, source, "")
    schemas.check(schema, result, source)
    return typing.cast(dict[str, Any], result)


def _expand(hint: Any, layer: dict[str, Any]) -> dict[str, Any]:
    """Put presets in the place of their names."""
    fields = schemas.fields_of(hint)
    for key, value in layer.items():
        inner = fields.get(key)
        if isinstance(value, str) and schemas.wants_mapping(inner) and _folders(key):
            layer[key] = _Whole(read_preset(key, value))
        elif isinstance(value, dict) and schemas.dataclass_in(inner):
            layer[key] = _expand(schemas.dataclass_in(inner), dict(value))
    return layer


def _merge(base: Any, layer: Any, hint: Any, source: str, path: str) -> Any:
    """Merge plain containers; lists are replaced whole or changed by index."""
    if isinstance(layer, _Whole):
        return _copy(dict(layer))
    schema = schemas.dataclass_in(hint)
    if schema is None:
        layer = _spell_out(base, layer, hint)
    if not isinstance(layer, Mapping):
        return _copy(layer)
    dotted = all(isinstance(key, str) for key in layer)  # guidance.0.scale; {0: boot} has a number
    if dotted and _are_numbers(layer) and (isinstance(base, str) or _is_named(base)):
        base = [base]  # one name, or named mapping, in the place of a list of them
    if isinstance(base, (list, tuple)) and all(str(key).isdigit() for key in layer):
        return _merge_by_index(base, layer, hint, source, path)
    if not isinstance(base, dict):
        base = {}
    fields = schemas.fields_of(schema)
    if schema is None and "name" in layer and layer["name"] != base.get("name", layer["name"]):
        base = {}
    result = dict(base)
    for key, value in layer.items():
        inner = fields.get(str(key))
        result[key] = _merge(base.get(key), value, inner, source, f"{path}{key}.")
    return result


def _spell_out(base: Any, layer: Any, hint: Any) -> Any:
    """A name, or one named mapping, as what it stands for: a mapping, or a list of mappings."""
    if isinstance(layer, str) and isinstance(base, Mapping) and "name" in base:
        return {"name": layer}
    if get_origin(hint) is list and schemas.wants_mapping(get_args(hint)[0]):
        is_name = isinstance(layer, str) and schemas.dataclass_in(get_args(hint)[0]) is None
        if is_name or (isinstance(layer, Mapping) and "name" in layer):
            layer = [layer]
        if isinstance(layer, list | tuple):
            return [{"name": each} if isinstance(each, str) else each for each in layer]
    return layer


def _is_named(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" in value


def _are_numbers(keys: Mapping[Any, Any]) -> bool:
    return bool(keys) and all(str(key).isdigit() for key in keys)


def _copy(value: Any) -> Any:
    """New containers around the same values, which may be objects as large as a network."""
    if isinstance(value, Mapping):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list | tuple) else value


def _merge_by_index(
    base: Sequence[Any], layer: Mapping[Any, Any], hint: Any, source: str, path: str
) -> list[Any]:
    result = list(base)
    inner = next(iter(get_args(schemas.without_none(hint))), None)
    for key, value in layer.items():
        index = int(key)
        if index >= len(result):
            raise ConfigError(
                f"{source}: {path.rstrip('.')} has {len(result)} entries, so none with the number "
                f"{index} (they count from 0); give the whole list"
            )
        if isinstance(result[index], str) and isinstance(value, Mapping):
            result[index] = {"name": result[index]}
        result[index] = _merge(result[index], value, inner, source, f"{path}{key}.")
    return result
