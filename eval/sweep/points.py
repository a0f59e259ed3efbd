"""The points of a sweep: the settings in which its runs differ, and their labels.

A sweep is a base that all points share, variants that are given names, and a grid: lists of values
whose product is run for every variant. Points of a file stand beside them.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genlab.config import load_yaml
from genlab.errors import ConfigError
from genlab.schema import check_plain

SHORT_KEYS = ("model", "steps", "guidance")
"""Keys that are no settings of a configuration: the model, and what ``--steps`` and ``--guidance``
of the command line set. A fourth, ``stitch``, is short for ``sampler.stitch``."""

_OPEN, _CLOSE = "[{(", "]})"
_SETTING = re.compile(r"[A-Za-z_][\w.-]*=")
_NO_WORDS = {"null", "none", "true", "false", "yes", "no", "on", "off", "y", "n"}
"""To YAML they are values of other kinds, unless they are quoted."""

_TEXT_WIDTH = 32
"""Letters of a value in a name; a longer one is cut."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
        variant: the name of what is tried; empty where nothing was named.
        settings: key -> value as text (YAML), what sets this point apart within its variant.
        overrides: all of its settings, ``KEY=VALUE``, the base included; later ones win.
        label: variant and settings in a few words; no two points of a sweep share one.
    """

    variant: str
    settings: Mapping[str, str]
    overrides: tuple[str, ...]
    label: str = ""

    @property
    def keys(self) -> dict[str, str]:
        """The last value of each of `SHORT_KEYS` among the overrides."""
        pairs = (text.partition("=") for text in self.overrides)
        return {key: value for key, _, value in pairs if key in SHORT_KEYS}

    @property
    def config_overrides(self) -> list[str]:
        """The overrides without `SHORT_KEYS`, ``stitch`` written out.

        Raises:
            ConfigError: ``stitch`` is not as it should be.
        """
        pairs = [text.partition("=") for text in self.overrides]
        return [
            _stitch(value) if key == "stitch" else f"{key}={value}"
            for key, _, value in pairs
            if key not in SHORT_KEYS
        ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All points of a sweep, in order.

    Attributes:
        points: variant by variant, the last key of the grid changing fastest; those of a file last.
        axes: key -> its values in their order, for each key in which points of a variant differ.
        short: key of any point's settings -> its shortest name that no other has.
    """

    points: tuple[Point, ...]
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)


def make_plan(
    base: Sequence[str] = (),
    grid: Sequence[str] = (),
    variants: Sequence[tuple[str, str]] = (),
    points: Path | None = None,
) -> Plan:
    """Lay out a sweep.

    Args:
        base: ``KEY=VALUE`` of every point, below all others.
        grid: ``KEY=VALUE,VALUE,...``: the product of all of them is run for each variant.
        variants: name and settings (``KEY=VALUE`` with blanks between them) each.
        points: a YAML file with a list of points that stand for themselves: mappings of keys and
            values, in which ``name`` is the variant's name, or text as of a variant.

    Raises:
        ConfigError: a text is no setting, a name, key or value stands twice, there is nothing to
            sweep, or the file is not as it should be.
    """
    for name, _ in variants:
        if not name.strip() or _SETTING.match(name):
            raise ConfigError(
                f"a variant needs a name first, got {name!r}: --variant NAME KEY=VALUE"
            )
    named = [(name, split_settings(text)) for name, text in variants]
    _check_once("the variant", [name for name, _ in named])
    axes: dict[str, tuple[str, ...]] = {}
    for text in grid:
        key, values = split_values(text)
        if key in axes:
            raise ConfigError(f"the grid has {key} twice; give it once with all its values")
        axes[key] = values
    planned: list[Point] = []
    if named or axes:
        for variant, extra in named or [("", [])]:
            for values in itertools.product(*axes.values()):
                settings = dict(zip(axes, values, strict=True))
                ours = (f"{key}={value}" for key, value in settings.items())
                overrides = (*base, *extra, *ours)
                planned.append(Point(variant=variant, settings=settings, overrides=overrides))
    if points is not None:
        for variant, settings in read_points(points):
            overrides = (*base, *(f"{key}={value}" for key, value in settings.items()))
            planned.append(Point(variant=variant, settings=settings, overrides=overrides))
    if not planned:
        raise ConfigError(
            "nothing to sweep over; name a grid (--grid sampler.schedule.num_steps=5,10,20), "
            "variants (--variant NAME KEY=VALUE) or a file of points (--points FILE)"
        )
    return _labelled(planned)


def split_values(text: str) -> tuple[str, tuple[str, ...]]:
    """A key of a grid and its values: cut at commas outside brackets and quotes.

    >>> split_values("sampler.solver.name=heun,unipc")
    ('sampler.solver.name', ('heun', 'unipc'))
    >>> split_values("sampler.guidance.0.when.sigma=[0.3,3],[1,5]")[1]
    ('[0.3,3]', '[1,5]')

    Raises:
        ConfigError: it is no setting, a bracket or quote stays open, or a value stands twice.
    """
    key, equals, rest = text.partition("=")
    if not equals or not key or not _SETTING.fullmatch(f"{key}="):
        raise ConfigError(
            f"{text!r} is no list of values: write KEY=VALUE,VALUE, for instance "
            "sampler.schedule.num_steps=5,10,20"
        )
    values = tuple(value.strip() for value in _cut(rest, lambda at: rest[at] == ",", text))
    if "" in values:
        raise ConfigError(f"{text!r} has an empty value; write null for none")
    _check_once(f"in the values of {key},", values)
    return key, values


def split_settings(text: str) -> list[str]:
    """Settings with blanks between them: cut before each ``KEY=`` outside brackets and quotes.

    >>> split_settings("sampler.guidance=[{name: cfg}, {name: cads}] sampler.solver=heun")
    ['sampler.guidance=[{name: cfg}, {name: cads}]', 'sampler.solver=heun']

    Raises:
        ConfigError: it does not begin with a setting, or a bracket or quote stays open.
    """
    text = text.strip()
    if not text:
        return []

    def ends(at: int) -> bool:
        return text[at].isspace() and _SETTING.match(text[at:].lstrip()) is not None

    settings = [each.strip() for each in _cut(text, ends, text)]
    settings = [each for each in settings if each]
    if not all(_SETTING.match(each) for each in settings):
        raise ConfigError(
            f"{text!r} is no setting: write KEY=VALUE, for instance sampler.solver=heun"
        )
    return settings


def _cut(text: str, ends: Any, whole: str) -> list[str]:
    """Cut where ``ends(index)`` holds outside brackets and quotes."""
    parts, start, depth, quote = [], 0, 0, ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (at == 0 or not text[at - 1].isalnum()):  # no apostrophe
            quote = letter
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif depth == 0 and ends(at):
            parts.append(text[start:at])
            start = at + (letter == ",")
    if depth != 0 or quote:
        unclosed = f"a quote {quote}" if quote else "a bracket"
        raise ConfigError(f"{whole!r} leaves {unclosed} open; close it, or quote the whole value")
    return [*parts, text[start:]]


def read_points(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Variant and settings of each point of a YAML file.

    Raises:
        ConfigError: it cannot be read, or is no list of points.
    """
    plain = load_yaml(path)
    if not isinstance(plain, list) or not plain:
        raise ConfigError(f"{path} must hold a list of points, each with its settings")
    check_plain(plain, str(path))
    return [_read_point(each, f"{path}, point {i}") for i, each in enumerate(plain, start=1)]


def _read_point(plain: Any, where: str) -> tuple[str, dict[str, str]]:
    if isinstance(plain, str):
        pairs = [text.partition("=") for text in split_settings(plain)]
        return "", {key: value for key, _, value in pairs}
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, got {plain!r}")
    settings = {str(key): value for key, value in plain.items()}
    name = str(settings.pop("name", "") or "")
    for key in settings:
        if not _SETTING.fullmatch(f"{key}="):
            raise ConfigError(f"{where}: {key!r} is no key of a setting")
    return name, {key: _as_text(value) for key, value in settings.items()}


def _as_text(value: Any) -> str:
    """A value as YAML that means it: JSON, but for plain words."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./:-]*", value):
        return json.dumps(value) if value.lower() in _NO_WORDS or value[-1] == ":" else value
    return json.dumps(value, ensure_ascii=False)


def _check_once(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{kind} {name!r} stands twice; name it once")


def _labelled(points: Sequence[Point]) -> Plan:
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    values = {
        key: tuple(dict.fromkeys(p.settings[key] for p in points if key in p.settings))
        for key in keys
    }
    axes = {key: values[key] for key in keys if _differs(points, key)}
    short = _short_names(keys)
    labelled: list[Point] = []
    for point in points:
        texts = {k: f"{short[k]} {shown(v)}" for k, v in point.settings.items()}
        apart = [text for key, text in texts.items() if key in axes]
        words = [point.variant] * bool(point.variant) + apart
        label = ", ".join(words or texts.values()) or "as it is"
        if any((p.variant, p.settings) == (point.variant, point.settings) for p in labelled):
            raise ConfigError(f"the point {label!r} stands twice; name it once")
        labelled.append(replace(point, label=label))
    return Plan(points=tuple(_unlike(labelled)), axes=axes, short=short)


def _differs(points: Sequence[Point], key: str) -> bool:
    """Whether points of one variant differ in a key (one without it differs from one with it)."""
    seen: dict[str, set[str | None]] = {}
    for point in points:
        seen.setdefault(point.variant, set()).add(point.settings.get(key))
    return any(len(values) > 1 for values in seen.values())


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each dotted key that no other key has; a final ``name`` says nothing.

    >>> list(_short_names(["sampler.guidance.0.scale", "sampler.solver.name"]).values())
    ['scale', 'solver']
    >>> list(_short_names(["sampler.guidance.0.scale", "sampler.guidance.1.scale"]).values())
    ['guidance.0.scale', 'guidance.1.scale']
    """
    plain = {key: key.removesuffix(".name") for key in keys}
    short = {}
    for key, name in plain.items():
        parts = name.split(".")
        endings = [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]
        others = [f".{other}" for k, other in plain.items() if k != key]
        alone = (e for e in endings if not any(other.endswith(f".{e}") for other in others))
        short[key] = next((e for e in alone if not e[0].isdigit()), key)
    return short


def shown(value: str) -> str:
    """A value in a name: without quotes, a named mapping without its brackets, and not too long.

    >>> shown('[{"name": "cfg", "scale": 4}]'), shown("[0.3, 3]")
    ('cfg, scale: 4', '[0.3, 3]')
    """
    value = re.sub("['\"]", "", value)
    if "name: " in value:
        value = re.sub(r"name: |[\[\]{}]", "", value)
    return value if len(value) <= _TEXT_WIDTH else f"{value[: _TEXT_WIDTH - 1]}…"


def _unlike(points: Sequence[Point]) -> list[Point]:
    """The same points; those whose cut values read alike get numbers."""
    labels = [point.label for point in points]
    seen: dict[str, int] = {}
    distinct = []
    for point in points:
        number = seen[point.label] = seen.get(point.label, 0) + 1
        alone = labels.count(point.label) == 1
        distinct.append(point if alone else replace(point, label=f"{point.label} ({number})"))
    return distinct


def _stitch(text: str) -> str:
    """``small:0.4+middle:0.2`` as a setting; a share of 0 is no model at all.

    >>> _stitch("dit-fmnist-s:0.4")
    'sampler.stitch=[{"model": "dit-fmnist-s", "fraction": 0.4}]'
    >>> _stitch("dit-fmnist-s:0"), _stitch("none")
    ('sampler.stitch=[]', 'sampler.stitch=[]')
    """
    unquoted = text.strip("'\"")
    models = [] if unquoted in ("none", "null", "") else unquoted.split("+")
    parts = [model.rpartition(":") for model in models]
    if not all(name and number_of(share) is not None for name, _, share in parts):
        raise ConfigError(
            f"stitch={text}: write MODEL:SHARE, for instance stitch=dit-fmnist-s:0.4, several with "
            "+ between them, or none"
        )
    shares = [(name, float(share)) for name, _, share in parts]
    stitched = [{"model": name, "fraction": share} for name, share in shares if share != 0]
    return f"sampler.stitch={json.dumps(stitched)}"


def number_of(value: str) -> float | None:
    """The number that a value is, or ends in behind a colon (``small:0.4``); None for none.

    >>> number_of("1.5"), number_of("dit-fmnist-s:0.4"), number_of("heun")
    (1.5, 0.4, None)
    """
    try:
        return float(value.strip("'\"").rpartition(":")[2])
    except ValueError:
        return None
