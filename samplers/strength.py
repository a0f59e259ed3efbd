"""Default scales of guidance, and options that a configuration leaves at their defaults.

Most guidance is off at the scale that its class has by default, so that one which is named without
a scale takes that of the model's own guidance, and is refused where the model has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from genlab.errors import ConfigError
from genlab.samplers.guidance.base import GUIDANCE, GuidanceOptions

OFF = 1
"""The scale at which guidance by the class changes nothing."""


def with_scales(
    entries: Sequence[Mapping[str, Any]], own: Sequence[GuidanceOptions]
) -> list[dict[str, Any]]:
    """The guidance of a configuration, each with its scale.

    Args:
        entries: one mapping for each guidance, as `SamplerConfig.guidance` has them.
        own: the guidance of the model itself.

    Raises:
        ConfigError: one has no scale, and would do nothing without.
        UnknownNameError: nothing is registered under a name.
    """
    return [_with_scale(number, dict(entry), own) for number, entry in enumerate(entries)]


def _with_scale(
    number: int, entry: dict[str, Any], own: Sequence[GuidanceOptions]
) -> dict[str, Any]:
    name = str(entry["name"])
    options: Any = GUIDANCE[name]
    defaults = {each.name: each.default for each in fields(options)} if _has_fields(options) else {}
    if "scale" in entry or "scale" not in defaults:
        return entry
    alike = [each for each in own if type(each) is options]
    if options.by_class and not alike:
        alike = [each for each in own if each.by_class]
    if alike:
        return {"name": name, "scale": getattr(alike[0], "scale"), **entry}  # noqa: B009
    if defaults["scale"] in (OFF, MISSING) and options.by_class:
        raise ConfigError(
            f"the guidance {name!r} is named without a scale, and the model has no guidance whose "
            f"scale it could take; add sampler.guidance.{number}.scale=2 or another value"
        )
    return entry


def _has_fields(options: Any) -> bool:
    return isinstance(options, type) and is_dataclass(options)


def left_out(entry: Mapping[str, Any], built: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each option that a configuration does not name.

    Args:
        entry: what the configuration says.
        built: the dataclass that was made of it.
        key: of the entry.
    """
    for each in fields(built):
        value, place = getattr(built, each.name), f"{key}.{each.name}"
        if is_dataclass(value) and not isinstance(value, type):
            inner = entry.get(each.name, {})
            if isinstance(inner, Mapping):
                yield from left_out(inner, value, place)
        elif each.name not in entry:
            yield place, value
