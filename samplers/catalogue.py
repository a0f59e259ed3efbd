"""The catalogue of solvers, schedules, guidance and presets, made from their docstrings.

Everything comes from where it stands anyway: the registries, the fields of the dataclasses and
their docstrings. Plug-ins are found in the same way.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from genlab import config, docstrings, schema
from genlab.errors import GenLabError, UnknownNameError, nearest
from genlab.registry import Registry, class_path, leave_out
from genlab.samplers.base import Solver
from genlab.samplers.registries import DECODERS, GUIDANCE, SCHEDULES, SOLVERS
from genlab.samplers.sampler import Sampler

NFE_STEPS = (10, 20, 50)
"""Numbers of steps for which the cost of solvers is shown."""

REGISTRIES: Mapping[str, Registry[Any]] = {
    "solver": SOLVERS,
    "schedule": SCHEDULES,
    "guidance": GUIDANCE,
    "decoder": DECODERS,
}
FAMILIES: Mapping[str, str] = {
    "diffusion": "genlab.samplers.sampler:SamplerConfig",
    "gan": "genlab.samplers.gan.sampler:GanConfig",
    "autoregressive": "genlab.samplers.autoregressive.base:DecodingConfig",
}
"""Family of generators -> where the schema of its ``sampler`` is; networks are slow to import."""

KINDS = (*REGISTRIES, "family", "preset")

MODELS = {
    "guidance": "dit-fmnist",
    "decoder": "pixelcnnpp-fmnist",
    "gan": "biggan-fmnist",
    "autoregressive": "pixelcnnpp-fmnist",
}
"""Kind, or family -> a bundled model to try it on; for the others `MODEL`."""

MODEL = "edm-fmnist"


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting.

    Attributes:
        name: its key below the entry, dotted where it is nested.
        takes: its type, in words.
        default: as it would be written; None where it has to be given.
        meaning: with range and unit.
    """

    name: str
    takes: str
    default: str | None
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One solver, schedule, guidance, decoder, family's sampler or preset.

    Attributes:
        kind: one of `KINDS`.
        name: as configs name it.
        aliases: other names of it.
        package: the package that a plug-in comes from; None for GenLab's own.
        summary: what it does.
        text: when to choose it, what it costs, and more; a paragraph each.
        source: paper and equation, or code.
        suits: which models it is for.
        options: its settings.
        command: one to copy.
        order: of convergence of a whole run (solvers).
        nfe: steps -> network evaluations of an image, without guidance (solvers); None where they
            depend on the image.
        draws: draws of noise in a step, with the default options (solvers).
        on_grid: whether the model is evaluated at the schedule's noise levels alone (solvers).
        describes: what it is made of, in a few words (presets).
        config: what stands in it (presets).
    """

    kind: str
    name: str
    aliases: tuple[str, ...] = ()
    package: str | None = None
    summary: str
    text: tuple[str, ...] = ()
    source: str = ""
    suits: str = ""
    options: tuple[Option, ...] = ()
    command: str
    order: int | None = None
    nfe: Mapping[int, int | None] | None = None
    draws: int | None = None
    on_grid: bool | None = None
    describes: str = ""
    config: Mapping[str, Any] | None = None


def names(kind: str) -> list[str]:
    """The names of one kind, in the order of its table."""
    if kind in REGISTRIES:
        return REGISTRIES[kind].in_order()
    return list(FAMILIES) if kind == "family" else config.preset_names("sampler")


def entries(kind: str) -> list[Entry]:
    """All entries of one kind; a broken plug-in is left out with a warning."""
    listed = []
    for name in names(kind):
        try:
            listed.append(entry(kind, name))
        except GenLabError as error:
            leave_out(error)
    return listed


def find(text: str) -> list[Entry]:
    """The entries of a name, or of an alias.

    Args:
        text: ``flow`` for all kinds that have this name, ``schedule:flow`` for one.

    Raises:
        UnknownNameError: there are none; names the nearest.
    """
    kind, colon, name = text.rpartition(":")
    if colon and kind not in KINDS:
        raise UnknownNameError(f"there is no kind {kind!r}; {nearest(kind, KINDS)}")
    kinds = [kind] if colon else list(KINDS)
    own_names = [(each, _own_name(each, name)) for each in kinds]
    matches = [(each, own) for each, own in own_names if own in names(each)]
    if not matches:
        candidates = [other for each in kinds for other in names(each)]
        title = kind or "solver, schedule, guidance, decoder, family or preset"
        raise UnknownNameError(f"there is no {title} {name!r}; {nearest(name, set(candidates))}")
    return [entry(each, own) for each, own in matches]


def _own_name(kind: str, name: str) -> str:
    return REGISTRIES[kind].aliases.get(name, name) if kind in REGISTRIES else name


def entry(kind: str, name: str) -> Entry:
    """One entry, from the docstring and attributes of its class.

    Raises:
        GenLabError: it is a plug-in that cannot be loaded or built.
    """
    if kind == "preset":
        return _preset(name)
    if kind == "family":
        return _from_class(kind, name, resolve_name(FAMILIES[name]))
    registry = REGISTRIES[kind]
    aliases = tuple(alias for alias, own in registry.aliases.items() if own == name)
    described = _from_class(kind, name, registry[name])
    described = dataclasses.replace(described, aliases=aliases, package=registry.package(name))
    if kind != "solver":
        return described
    solver: Solver = registry.build(name)
    return dataclasses.replace(
        described,
        order=solver.order,
        nfe={steps: solver.nfe(steps) for steps in NFE_STEPS},
        draws=solver.draws(),
        on_grid=solver.on_grid,
    )


def _from_class(kind: str, name: str, cls: Any) -> Entry:
    doc = docstrings.describe(cls)
    suits = str(getattr(cls, "suits", "" if kind in ("decoder", "family") else "any"))
    return Entry(
        kind=kind,
        name=name,
        summary=_prose(doc.summary) or class_path(cls),
        text=tuple(map(_prose, doc.text)),
        source=_prose(doc.source),
        suits=suits,
        options=tuple(_options(cls)),
        command=_command(kind, name, suits, getattr(cls, "example", {})),
    )


def _preset(name: str) -> Entry:
    lines = config.preset_path("sampler", name).read_text(encoding="utf-8").splitlines()
    comment = [line.lstrip("# ") for line in lines if line.startswith("#")]
    summary, _, _ = (comment or [""])[0].partition(": genlab ")
    settings = config.read_preset("sampler", name)
    sampler = Sampler.from_config(settings)
    parts = [sampler.schedule, *sampler.guidance]
    models = dict.fromkeys(str(getattr(each, "suits", "any")) for each in parts)
    suits = "; ".join(each for each in models if each != "any") or "any"
    return Entry(
        kind="preset",
        name=name,
        summary=summary,
        text=(" ".join(comment[1:]),) if comment[1:] else (),
        suits=suits,
        command=_command("preset", name, suits, {}),
        describes=sampler.describe(),
        config=settings,
    )


SHOWN_BY = {"diffusers": "pndm"}
"""Solver and schedule that need each other -> a preset that has both."""


def _command(kind: str, name: str, suits: str, example: Mapping[str, Any]) -> str:
    model = MODELS.get(kind, MODELS.get(name, MODEL))
    if kind != "solver" and suits.startswith(("discrete", "flow matching")):
        model = "MODEL"  # no bundled one has timesteps, or was trained by flow matching
    preset = name if kind == "preset" else SHOWN_BY.get(name)
    if preset is not None:
        settings = [f"sampler={preset}"]
    elif kind == "family":
        settings = [f"sampler.{key}={_written(value)}" for key, value in example.items()]
    elif kind == "guidance":
        stack = [*getattr(GUIDANCE[name], "below", ()), {"name": name, **example}]
        settings = [f"sampler.guidance={_written(stack)}"]
    else:
        changes = [f"sampler.{kind}.{key}={_written(value)}" for key, value in example.items()]
        settings = [f"sampler.{kind}.name={name}", *changes]
    return " ".join(["genlab sample", model, *map(shlex.quote, settings)])


def _options(cls: Any, prefix: str = "") -> Iterator[Option]:
    if not dataclasses.is_dataclass(cls):
        return
    hints = schema.fields_of(cls)
    for each in dataclasses.fields(cls):
        meaning = docstrings.meaning(cls if isinstance(cls, type) else type(cls), each.name)
        inner = schema.dataclass_in(hints[each.name])
        if inner is not None:
            yield from _options(inner, f"{prefix}{each.name}.")
            continue
        yield Option(
            name=prefix + each.name,
            takes=schema.takes(hints[each.name]),
            default=_default(each),
            meaning=_prose(meaning),
        )


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        return _written(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _written(field.default_factory())
    return None


def _written(value: Any) -> str:
    """A value as it would stand in a config."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value)


def _prose(text: str) -> str:
    """Docstring text as people read it: classes by the names that configs have for them."""
    return re.sub(r"`([^`]+)`", lambda match: _named(match[1]), text.replace("``", "`"))


def _named(code: str) -> str:
    for registry in REGISTRIES.values():
        for name in registry:
            place = registry.place(name)
            if place is not None and place.rpartition(":")[2] == code:
                return name
    return code
