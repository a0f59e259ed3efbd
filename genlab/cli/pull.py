"""``genlab pull``: a model of the hub comes to this machine, or its newest version."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from genlab.cli.common import FOLDER, echo_json, json_option
from genlab.cli.completion import complete_hub
from genlab.errors import ConfigError

if TYPE_CHECKING:  # --help answers at once
    from genlab.checkpoints.hub.fetch import Listing

EPILOG = """\b
Examples:
  genlab pull ada/tiny-edm                       # then: genlab sample ada/tiny-edm
  genlab pull ada/tiny-edm --revision v1         # then: genlab sample ada/tiny-edm@v1
  genlab pull ada/tiny-edm --dry-run             # what would come, and how much
  genlab pull ada/tiny-edm --to here/            # a folder of your own

Comes down: model_index.json, config.json, safetensors and README.md, no other file, whatever else
the repository holds. Nothing is executed, each file is held against what the hub announced, and the
copy gets its name when it is whole.

A MODEL named OWNER/NAME is fetched on its first use. From then on its name means that very commit,
with the network or without (HF_HUB_OFFLINE=1), until you pull again. OWNER/NAME@REVISION names a
branch, a tag or a commit wherever a MODEL is asked for.

Private and gated repositories: log in once with 'hf auth login', or set HF_TOKEN.

Official checkpoints are no repositories of GenLab's folders, and have to be converted: 'genlab zoo
pull NAME' does that."""


@click.command("pull", epilog=EPILOG)
@click.argument("repository", metavar="OWNER/NAME", shell_complete=complete_hub)
@click.option("--revision", metavar="REVISION", help="A branch, tag or commit; default: main.")
@click.option(
    "--to", type=FOLDER, help="Write a copy to this folder, too; it must be new or empty."
)
@click.option("--again", is_flag=True, help="Fetch it although that commit is here already.")
@click.option("--dry-run", is_flag=True, help="Print the files and their sizes; stop.")
@json_option
def command(
    repository: str,
    revision: str | None,
    to: Path | None,
    again: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch the model, adapter or classifier OWNER/NAME from the hub, or its newest version."""
    from genlab.checkpoints.bundled import bundled_names
    from genlab.checkpoints.hub.fetch import fetch, list_files
    from genlab.checkpoints.hub.names import SOURCE, named
    from genlab.checkpoints.zoo.catalogue import entries
    from genlab.files import read_json_object

    if repository in bundled_names():
        raise ConfigError(f"{repository} comes with GenLab: use it as it is, nothing to fetch")
    if repository in entries():
        raise ConfigError(
            f"{repository} is an official checkpoint; fetch and convert it with 'genlab zoo pull "
            f"{repository}'"
        )
    name = named(repository, revision)
    if to is not None:
        _check_empty(to)
    if dry_run:
        _show(list_files(name), as_json)
        return
    fetched: list[Listing] = []
    copy = fetch(name, again=again, on_listing=fetched.append)
    if to is not None:
        _copy(copy.folder, to)
    source = read_json_object(copy.folder.parent / SOURCE)
    if as_json:
        echo_json({**source, "revision": name.revision or "main", "folder": copy.folder})
        return
    size = sum(source["files"].values())
    state = f"{len(source['files'])} files, {size / 1e6:,.1f} MB" if fetched else "here already"
    click.echo(f"{name}: commit {copy.commit}, {state}")
    click.echo(f"{to or copy.folder}: ready, use it as '{to or name}'")


def _show(listing: "Listing", as_json: bool) -> None:
    sizes = {file.path: file.size for file in listing.files}
    if as_json:
        echo_json(
            {
                "repository": listing.name.repository,
                "commit": listing.commit,
                "kind": listing.layout.kind,
                "files": sizes,
                "left": listing.left,
            }
        )
        return
    for path, size in sizes.items():
        click.echo(f"{size or 0:>15,}  {path}")
    click.echo(f"{listing.size:>15,}  bytes in {len(sizes)} files of a {listing.layout.kind}")
    click.echo(f"{listing.left} other files of the repository stay there; commit {listing.commit}")


def _check_empty(folder: Path) -> None:
    from genlab.errors import OutputError

    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds files; choose a new or empty folder")


def _copy(folder: Path, to: Path) -> None:
    """Copy a model; the folder is whole or not there."""
    import shutil
    import tempfile

    from genlab.errors import OutputError, reason

    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as temporary:
            new = Path(temporary) / "new"
            shutil.copytree(folder, new)
            if to.is_dir():
                to.rmdir()
            new.rename(to)
    except OSError as error:
        raise OutputError(f"cannot write {to}: {reason(error)}; choose another folder") from error
