"""``genlab presets``: what configurations are shipped, what stands in them, which to begin with."""

import click

from genlab.cli.common import echo_json, json_option
from genlab.cli.completion import complete_presets
from genlab.cli.recommend import recommend
from genlab.errors import UnknownNameError, nearest

HOW = {
    "eval": "genlab eval MODEL --protocol NAME",
    "finetune": "genlab finetune MODEL --method NAME",
    "sample": "genlab sample --config NAME",
    "sampler": "genlab sample MODEL sampler=NAME",
    "train": "genlab train NAME",
}
"""Kind of preset -> the command that takes it."""


@click.group("presets", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List the shipped configurations, print one, or recommend one for your own images.

    A preset is a YAML file: 'genlab presets show NAME > mine.yaml' makes a copy to change, and
    mine.yaml goes where the name went. 'genlab presets recommend DATA' writes one to train with.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_presets)


@command.command("list")
@click.argument("kind", required=False)
@json_option
def list_presets(kind: str | None = None, as_json: bool = False) -> None:
    """List the presets of every kind, or of one KIND, with what their first line says."""
    presets = [preset for preset in _all_presets() if kind in (None, preset[0])]
    if not presets:
        kinds = {each for each, _ in _all_presets()}
        raise UnknownNameError(f"there is no kind of presets {kind!r}; {nearest(str(kind), kinds)}")
    if as_json:
        echo_json(
            [{"kind": kind, "name": name, "about": _about(kind, name)} for kind, name in presets]
        )
        return
    width = max(len(name) for _, name in presets)
    for each in dict.fromkeys(kind for kind, _ in presets):
        click.echo(f"{each} ({HOW.get(each, 'see the README')}):")
        for name in (name for its_kind, name in presets if its_kind == each):
            click.echo(f"  {name:<{width}}  {_about(each, name)}".rstrip())


@command.command("show")
@click.argument("name", shell_complete=complete_presets)
def show(name: str) -> None:
    """Print a preset; NAME is 'edm-heun', or 'sampler/edm-heun' where two kinds share a name."""
    from genlab.config import preset_path

    preset_kind, _, preset_name = name.removesuffix(".yaml").rpartition("/")
    preset_kind = preset_kind.removeprefix("configs/")
    presets = _all_presets()
    matches = [(k, n) for k, n in presets if n == preset_name and preset_kind in {"", k}]
    if len(matches) > 1:
        forms = " or ".join(f"{kind}/{preset}" for kind, preset in matches)
        raise click.UsageError(f"several presets are called {preset_name!r}; say {forms}")
    if not matches:
        names = {n for k, n in presets if preset_kind in {"", k}} or {
            f"{k}/{n}" for k, n in presets
        }
        raise UnknownNameError(f"there is no preset {name!r}; {nearest(preset_name, names)}")
    click.echo(preset_path(*matches[0]).read_text(encoding="utf-8"), nl=False)


command.add_command(recommend)


def _all_presets() -> list[tuple[str, str]]:
    from genlab.config import preset_kinds, preset_names

    return [(kind, name) for kind in preset_kinds() for name in preset_names(kind)]


def _about(kind: str, name: str) -> str:
    """The comment that a preset opens with, up to its first full stop or line end."""
    from genlab.config import preset_path

    first = preset_path(kind, name).read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""
