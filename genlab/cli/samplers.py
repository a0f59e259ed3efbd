"""``genlab samplers``: solvers, schedules, guidance and presets, and what each of them does."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import echo_json, json_option, markdown_table, print_table, wrapped
from genlab.cli.completion import complete_samplers

if TYPE_CHECKING:  # torch is imported only when something is listed
    from genlab.samplers.catalogue import Entry

KINDS = ("solver", "schedule", "guidance", "decoder", "family", "preset")
TITLES = {
    "solver": "Solvers (sampler.solver.name)",
    "schedule": "Noise schedules (sampler.schedule.name)",
    "guidance": "Guidance (sampler.guidance, a list, innermost first)",
    "decoder": "Decoders of autoregressive models (sampler.decoder.name)",
    "family": "Settings of each family of generators (sampler)",
    "preset": "Presets (sampler=NAME)",
}
LEGENDS = {
    "solver": "NFE: network evaluations of an image in so many steps, without guidance. draws: of"
    " noise in a step with the default options, 0 is deterministic. on grid: asks the model at the"
    " noise levels of the schedule alone; the others want a model that knows every noise level.",
}


@click.group("samplers", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List solvers, schedules, guidance and presets, or show one of them.

    A sampler of a diffusion model is a solver, a noise schedule and a stack of guidance. Any of
    them go together: 'genlab samplers show NAME' ends with a command to copy.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_samplers)


@command.command("list")
@click.argument("kind", required=False, type=click.Choice(KINDS))
@json_option
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")
def list_samplers(kind: str | None = None, as_json: bool = False, markdown: bool = False) -> None:
    """List all of them, or those of one KIND; plug-ins, too."""
    from genlab.samplers.catalogue import entries

    by_kind = {each: entries(each) for each in KINDS if kind in (None, each)}
    if as_json:
        echo_json([_plain(entry) for listed in by_kind.values() for entry in listed])
        return
    for each, listed in by_kind.items():
        rows = [_row(entry) for entry in listed]
        if markdown:
            click.echo(f"### {TITLES[each]}\n\n{markdown_table(_COLUMNS[each], rows)}\n")
        else:
            click.echo(TITLES[each])
            print_table(_COLUMNS[each], rows)
        if each in LEGENDS:
            click.echo(f"{LEGENDS[each] if markdown else wrapped(LEGENDS[each])}\n")


@command.command("show")
@click.argument("name", shell_complete=complete_samplers)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what NAME does, when to choose it, its options, cost, order and source.

    NAME is that of a solver, schedule, guidance, decoder, family or preset; 'schedule:flow' is the
    one of two that share a name.
    """
    from genlab.samplers.catalogue import find

    matches = find(name)
    if as_json:
        echo_json([_plain(entry) for entry in matches])
        return
    click.echo("\n\n".join("\n\n".join(_page(entry)) for entry in matches))


_COLUMNS: Mapping[str, Sequence[str]] = {
    "solver": ("name", "order", "NFE 10", "20", "50", "draws", "on grid", "models", "what it does"),
    "schedule": ("name", "models", "what it does"),
    "guidance": ("name", "models", "what it does", "cost"),
    "decoder": ("name", "what it does", "cost"),
    "family": ("name", "settings"),
    "preset": ("name", "made of", "models", "what it is"),
}


def _row(entry: "Entry") -> list[str]:
    name = entry.name + "".join(f", {alias}" for alias in entry.aliases)
    name += f" ({entry.package})" if entry.package else ""
    if entry.kind == "solver":
        cost = ["varies" if nfe is None else str(nfe) for nfe in (entry.nfe or {}).values()]
        grid = "yes" if entry.on_grid else "no"
        middle = [str(entry.order), *cost, str(entry.draws), grid, entry.suits]
        return [name, *middle, entry.summary]
    if entry.kind == "schedule":
        return [name, entry.suits, entry.summary]
    if entry.kind == "family":
        return [name, ", ".join(option.name for option in entry.options)]
    if entry.kind == "preset":
        return [name, entry.describes, entry.suits, entry.summary]
    models = [entry.suits] if entry.kind == "guidance" else []
    return [name, *models, entry.summary, _cost(entry)]


def _cost(entry: "Entry") -> str:
    """The sentence on what it costs."""
    for paragraph in entry.text:
        if "cost" in paragraph.lower():
            return paragraph.partition(". ")[0].rstrip(".")
    return ""


def _page(entry: "Entry") -> Iterator[str]:
    """The paragraphs of one entry."""
    aliases = f", also called {', '.join(entry.aliases)}" if entry.aliases else ""
    package = f", of the package {entry.package}" if entry.package else ""
    yield f"{entry.name} ({entry.kind}{aliases}{package})"
    yield wrapped(entry.summary, "  ")
    for paragraph in entry.text:
        yield wrapped(paragraph, "  ")
    metadata = list(_metadata(entry))
    if metadata:
        width = max(len(name) for name, _ in metadata) + 4
        yield "\n".join(wrapped(text, " " * width, f"  {name}") for name, text in metadata)
    if entry.config is not None:
        from genlab.config import to_yaml

        lines = to_yaml(entry.config).rstrip().split("\n")
        yield "\n".join(["  settings:", *(f"    {line}" for line in lines)])
    if entry.options:
        yield "\n".join(["  options:", *map(_option, entry.options)])
    yield f"  try it:\n    {entry.command}"


def _metadata(entry: "Entry") -> Iterator[tuple[str, str]]:
    if entry.kind == "solver":
        yield "order", str(entry.order)
        evaluations = {steps: nfe for steps, nfe in (entry.nfe or {}).items() if nfe is not None}
        costs = [f"{nfe} in {steps} steps" for steps, nfe in evaluations.items()]
        yield "network evaluations", ", ".join(costs) or "as many as the image needs"
        random = f"{entry.draws} draws a step" if entry.draws else "deterministic"
        yield "noise", f"{random}, with the default options"
        levels = "those of the schedule alone" if entry.on_grid else "levels in between, too"
        yield "asks the model at", levels
    if entry.describes:
        yield "made of", entry.describes
    if entry.suits:
        yield "models", entry.suits
    if entry.source:
        yield "source", entry.source


def _option(option: Any) -> str:
    default = "required" if option.default is None else f"default {option.default}"
    head = f"    {option.name}: {option.takes}, {default}"
    return f"{head}\n{wrapped(option.meaning, ' ' * 8)}" if option.meaning else head


def _plain(entry: "Entry") -> dict[str, Any]:
    return dataclasses.asdict(entry)
