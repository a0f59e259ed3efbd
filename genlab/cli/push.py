"""``genlab push``: a model, an adapter or a classifier goes to the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import ANY_PATH, echo_json, json_option

if TYPE_CHECKING:  # --help answers at once
    from genlab.publishing.push import Plan

EPILOG = """\b
Examples:
  genlab push my-model/ ada/tiny-edm --dry-run      # what would go up; the hub is not asked
  genlab push my-model/ ada/tiny-edm                # a private repository
  genlab push my-model/ ada/tiny-edm --public --records leaderboard/
  genlab push my-adapter/ ada/lamps --base ada/tiny-edm
  genlab push my-model/ ada/tiny-edm --revision longer
  genlab sample ada/tiny-edm --seeds 0-63           # on any machine

Goes up: model_index.json, config.json, safetensors, README.md and the pictures that it shows, the
log of training, and with --records the scores. All else in FOLDER stays: states of training,
pickles, scripts, hidden files.

The card's header says what the hub searches by; scores stand in its model-index, and only those
that were made with these very weights.

Log in once with 'hf auth login', or set HF_TOKEN to a token that may write; there is no option for
it, since command lines are kept in histories and shown to others."""


@click.command("push", epilog=EPILOG)
@click.argument("folder", type=ANY_PATH)
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Of a new repository; one that is there stays as it is.",
)
@click.option("--revision", metavar="BRANCH", help="The branch; default: main.")
@click.option(
    "--records",
    type=ANY_PATH,
    multiple=True,
    help="Records of 'genlab eval', by file or folder: those of these weights. Repeatable.",
)
@click.option(
    "--base", metavar="NAME", help="Of an adapter: the name that others find its base by."
)
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Print the files, their sizes and the card; stop.")
@json_option
def command(
    folder: Path,
    repository: str,
    private: bool,
    revision: str | None,
    records: tuple[Path, ...],
    base: str | None,
    message: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put the model, adapter or classifier in FOLDER on the hub as OWNER/NAME.

    All files go up in one commit. Whoever may read the repository then uses it by its name,
    wherever a MODEL is asked for.
    """
    from genlab.checkpoints.hub.names import named
    from genlab.publishing.push import plan_push, push

    name = named(repository, revision)
    plan = plan_push(folder, name, records=records, base=base)
    if dry_run:
        _show(plan, as_json)
        return
    pushed = push(plan, private=private, message=message)
    sizes = plan.sizes()
    if as_json:
        echo_json(
            {
                "repository": name.repository,
                "revision": name.revision or "main",
                "commit": pushed.commit,
                "url": pushed.url,
                "files": sizes,
                "removed": list(pushed.removed),
            }
        )
        return
    click.echo(
        f"{name}: {len(sizes)} files, {_megabytes(sum(sizes.values()))}, commit {pushed.commit}"
    )
    if pushed.removed:
        click.echo(f"removed there, since the model has them no more: {', '.join(pushed.removed)}")
    click.echo(f"see {pushed.url}; use it as '{name}'")


def _show(plan: "Plan", as_json: bool) -> None:
    sizes = plan.sizes()
    if as_json:
        facts: dict[str, Any] = {
            "repository": plan.name.repository,
            "revision": plan.name.revision or "main",
            "kind": plan.kind,
            "base": plan.base,
            "files": sizes,
            "left": plan.left,
            "card": plan.card,
        }
        echo_json(facts)
        return
    for path, size in sizes.items():
        click.echo(f"{size:>15,}  {path}")
    click.echo(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files of a {plan.kind}")
    click.echo(f"{plan.left} other files in the folder stay here\n")
    click.echo(f"README.md as it goes up:\n\n{plan.card.rstrip()}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
