"""``genlab zoo``: official checkpoints by name."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from genlab.cli.common import FOLDER, echo_json, json_option, print_table, progress
from genlab.cli.completion import complete_zoo
from genlab.errors import ConfigError, UnknownNameError, nearest

MEGABYTE = 1_000_000
COLUMNS = ("name", "data", "images", "classes", "licence", "published score", "state")


@click.group("zoo", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List the official checkpoints, show their metadata, fetch them.

    A fetched model is converted once and kept; 'genlab sample NAME' and genlab.load("NAME") find it
    there. The weights belong to their publishers: mind their licence.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models)


@command.command("list")
@json_option
def list_models(as_json: bool = False) -> None:
    """List bundled and official models, and adapters: kept ones, and those below runs/."""
    rows = _rows()
    if as_json:
        echo_json(rows)
        return
    cells = [[str(row[column]) for column in COLUMNS] for row in rows]
    print_table(COLUMNS, cells, no_wrap=("name", "state"))


def _rows() -> list[dict[str, Any]]:
    from genlab.checkpoints.bundled import bundled_metadata, bundled_names
    from genlab.checkpoints.zoo.catalogue import entries, pulled_folder

    rows = [bundled_metadata(name) | {"state": "bundled"} for name in bundled_names()]
    for name, entry in entries().items():
        score = entry.scores[-1] if entry.scores else None
        rows.append(
            {
                "name": name,
                "data": entry.data,
                "images": "x".join(map(str, entry.image_shape)),
                "classes": entry.num_classes,
                "licence": entry.licence + ("" if entry.commercial_use else ", non-commercial"),
                "published score": f"{score.metric} {score.value:g}" if score else "",
                "state": "pulled" if pulled_folder(name) else "not pulled",
            }
        )
    return rows + _adapters()


def _adapters() -> list[dict[str, Any]]:
    from genlab.cli.adapter import adapter_rows

    return [
        {
            "name": row["name"] if row["kept"] else row["folder"],
            "data": "",
            "images": "",
            "classes": "" if row["classes"] is None else row["classes"],
            "licence": "",
            "published score": "",
            "state": f"adapter of {row['base'] or 'a model that it does not name'}",
        }
        for row in adapter_rows(Path("runs"), kept=True)
    ]


@command.command("show")
@click.argument("name", shell_complete=complete_zoo)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what is known of a model: address, licence, checksum, architecture, published scores."""
    from genlab.checkpoints.bundled import bundled_card, bundled_names

    if name in bundled_names():
        card = bundled_card(name)
        if as_json:
            echo_json({"name": name, "state": "bundled", "card": card})
        else:
            click.echo(card)
        return
    metadata = _metadata(name)
    if as_json:
        echo_json(metadata)
        return
    from genlab.config import to_yaml

    click.echo(to_yaml(metadata).rstrip())
    click.echo(f"\n{_how_to_fetch(name)}")


def _how_to_fetch(name: str) -> str:
    from genlab.checkpoints.zoo.catalogue import find

    entry = find(name)
    if not entry.direct:
        return f"fetch it by hand, then 'genlab convert FILE -o FOLDER --format {entry.format}'"
    if entry.format.endswith("classifier"):
        return f"fetch it with 'genlab zoo pull {name}', then name it in a guidance by a classifier"
    return f"fetch it with 'genlab zoo pull {name}', then 'genlab sample {name}'"


def _metadata(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from genlab.checkpoints.bundled import bundled_names
    from genlab.checkpoints.zoo.catalogue import entries, pulled_folder, recorded_checksum

    table = entries()
    if name not in table:
        names = [*bundled_names(), *table]
        raise UnknownNameError(f"there is no model {name!r}; {nearest(name, names)}")
    folder = pulled_folder(name)
    metadata = asdict(table[name])
    return {
        "name": name,
        **metadata,
        "sha256": metadata["sha256"] or "unknown: the first download is trusted",
        "sha256 of the first download": recorded_checksum(table[name]) or "none yet",
        "state": str(folder) if folder else "not pulled",
    }


@command.command("pull")
@click.argument("name", shell_complete=complete_zoo)
@click.option("--to", type=FOLDER, help="The model's folder; default: the cache ($GENLAB_HOME).")
@click.option(
    "--base-url",
    metavar="URL",
    help="A mirror: a folder with the same file names, of Hugging Face's files REPOSITORY/FILE.",
)
@click.option("--again", is_flag=True, help="Fetch it although it is there already.")
def pull(name: str, to: Path | None, base_url: str | None, again: bool) -> None:
    """Fetch an official checkpoint and convert it.

    A pull that was interrupted goes on where it stopped. The file is checked against its published
    checksum, or, where none is published, against that of the first download.
    """
    from genlab.checkpoints.bundled import bundled_names
    from genlab.checkpoints.zoo.catalogue import find
    from genlab.checkpoints.zoo.pull import pull as fetch

    if name in bundled_names():
        click.echo(f"{name} comes with GenLab: nothing to fetch")
        return
    if "/" in name:
        raise ConfigError(f"{name} is no name of the zoo; of the hub: 'genlab pull {name}'")
    entry = find(name)
    use = "" if entry.commercial_use else ": no commercial use"
    click.echo(f"{name}: {entry.paper}; licence {entry.licence}{use}", err=True)
    with _download_bar(entry.file) as advance, _ended_in_order():
        pulled = fetch(name, to, base_url=base_url, again=again, on_progress=advance)
    if pulled.sha256 is None:
        click.echo(f"{pulled.folder} is there already; --again fetches it anew")
        return
    if pulled.first_use:
        click.echo(
            f"no checksum is published for {entry.file}: this download was trusted and its sha256 "
            f"{pulled.sha256} recorded; later ones are held against it",
            err=True,
        )
    click.echo(f"{pulled.folder}: ready, use it as '{pulled.folder if to else name}'")


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: what is half written goes, the download stays."""

    def end(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _download_bar(file: str) -> Any:
    """A progress bar in megabytes that learns the size from the first answer."""

    @contextmanager
    def bar() -> Any:
        with progress(f"{file} (MB)", None) as shown:
            last = 0

            def advance(have: int, total: int | None) -> None:
                nonlocal last
                if total is not None:
                    shown.set_total(total // MEGABYTE)
                shown.advance(have // MEGABYTE - last)
                last = have // MEGABYTE

            yield advance

    return bar()
