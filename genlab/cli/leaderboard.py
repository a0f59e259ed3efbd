"""``genlab leaderboard``: rank the records of evaluations, as a table or as a page."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import ANY_PATH, FOLDER, Decorator, plain_warnings

if TYPE_CHECKING:
    from genlab.errors import EvaluationError
    from genlab.eval.leaderboard.board import Entry, Section
    from genlab.eval.leaderboard.records import Record

DEFAULT = Path("leaderboard")

EPILOG = """\b
Examples:
  genlab eval edm-fmnist --protocol offline-2k     # writes a record into ./leaderboard
  genlab leaderboard show                          # it and the bundled models, best first
  genlab leaderboard show --dataset fmnist --score fd
  genlab leaderboard html -o leaderboard.html      # one file: open it, send it, publish it
  genlab leaderboard add ~/theirs/*.json           # check records of others and copy them in
  genlab leaderboard csv -o scores.csv             # every score with all its digits

Scores are ranked only against scores made alike: same data set, extractor and weights, reference,
number of images, label sampling, metric settings. '=2' is a tie: the 95 % intervals overlap.
Keep the folder in git: one record is one file, and files of different records never collide."""


def _after(function: Any, *options: Decorator) -> Any:
    for option in reversed(options):
        function = option(function)
    return function


def reading(function: Any) -> Any:
    """Options of every command that reads records: where from, and which of them."""
    return _after(
        function,
        click.option(
            "--dir",
            "folder",
            type=FOLDER,
            help="Folder of records, and no others. Default: those of ./leaderboard and of the "
            "models that come with GenLab.",
        ),
        click.option("--dataset", metavar="NAME", help="Only this data set."),
        click.option("--score", metavar="NAME", help="Only this score, for instance fd."),
        click.option("--protocol", metavar="NAME", help="Only this protocol."),
        click.option(
            "--published/--no-published",
            default=True,
            show_default=True,
            help="Show scores of papers beside ours.",
        ),
        skip_option,
    )


skip_option: Decorator = click.option(
    "--skip-broken", is_flag=True, help="Leave out files that are not valid records."
)


def output_option(default: str, text: str) -> Decorator:
    """``-o FILE``; ``-`` is standard output."""
    return click.option(
        "-o", "--output", type=ANY_PATH, default=default, show_default=True, help=text
    )


@click.group("leaderboard", invoke_without_command=True, epilog=EPILOG)
@click.pass_context
def command(context: click.Context) -> None:
    """Rank scores that were made alike.

    Without a command: show.
    """
    if context.invoked_subcommand is None:
        context.invoke(show)


@command.command()
@reading
def show(
    folder: Path | None = None,
    dataset: str | None = None,
    score: str | None = None,
    protocol: str | None = None,
    published: bool = True,
    skip_broken: bool = False,
) -> None:
    """Show the ranking in the terminal."""
    sections = _sections(folder, dataset, score, protocol, published, skip_broken)
    sections = sections if dataset else [each for each in sections if each.groups]
    if not sections:
        from genlab.eval.leaderboard.page import EMPTY

        click.echo(EMPTY)
        return
    from genlab.eval.leaderboard.terminal import print_sections

    # Into a pipe each model keeps its one line with all its scores, for grep.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print_sections(sections, width)


@command.command()
@reading
@output_option("leaderboard.html", "The page; - is standard output.")
def html(output: Path, **chosen: Any) -> None:
    """Write one self-contained page: tables, sample pictures, quality against cost."""
    from genlab.eval.leaderboard.page import render_page

    sections = _sections(**chosen)
    _write(output, render_page(sections), sections)


@command.command("csv")
@reading
@output_option("-", "The file; - is standard output.")
def csv_(output: Path, **chosen: Any) -> None:
    """Write every score as a line, with all its digits."""
    from genlab.eval.leaderboard.tables import to_csv

    sections = _ours_or_asked(_sections(**chosen), chosen["dataset"])
    _write(output, to_csv(sections), sections)


@command.command()
@reading
@output_option("-", "The file; - is standard output.")
def markdown(output: Path, **chosen: Any) -> None:
    """Write tables for a README."""
    from genlab.eval.leaderboard.page import EMPTY
    from genlab.eval.leaderboard.tables import to_markdown

    sections = _ours_or_asked(_sections(**chosen), chosen["dataset"])
    _write(output, to_markdown(sections) if sections else f"{EMPTY}\n", sections)


@command.command()
@click.argument("sources", nargs=-1, required=True, metavar="FILE_OR_FOLDER...", type=ANY_PATH)
@click.option(
    "--dir", "folder", type=FOLDER, default=DEFAULT, show_default=True, help="Folder of records."
)
@skip_option
def add(sources: tuple[Path, ...], folder: Path, skip_broken: bool) -> None:
    """Check records and copy them into the folder.

    All are checked before the first is copied. A record that is there already is not added twice.
    """
    from genlab.eval.leaderboard.records import file_name, write_record

    entries, broken = _read_all(sources)
    _report(broken, skip_broken)
    existing = {path.name for path in folder.glob("*.json")}
    new = [entry for entry in entries if file_name(entry.record) not in existing]
    for entry in new:
        click.echo(f"added {write_record(folder, entry.record)}")
    count = len(entries) - len(new)
    click.echo(f"{folder}: {len(new)} added" + (f", {count} there already" if count else ""))


def _read_all(sources: Sequence[Path]) -> "tuple[list[Entry], list[EvaluationError]]":
    from genlab.errors import EvaluationError
    from genlab.eval.leaderboard.board import Entry, read_folder
    from genlab.eval.leaderboard.records import read_record, record_id

    entries: dict[str, Entry] = {}
    broken: list[EvaluationError] = []
    for source in sources:
        if source.is_dir():
            folder_entries, bad = read_folder(source)
            if not folder_entries and not bad:
                raise EvaluationError(f"{source} holds no record: no file there ends in .json")
            entries |= {entry.key: entry for entry in folder_entries}
            broken += bad
            continue
        try:
            record = read_record(source)
        except EvaluationError as error:
            broken.append(error)
        else:
            entry = Entry(key=record_id(record), record=record)
            entries[entry.key] = entry
    return list(entries.values()), broken


def _report(broken: "Sequence[EvaluationError]", skip: bool) -> None:
    """Name every broken file; they stop the command unless they were to be skipped."""
    from genlab.errors import EvaluationError

    for error in broken if skip else broken[:-1]:
        click.echo(f"{'left out: ' if skip else ''}{error}", err=True)
    if broken and not skip:
        number = f"{len(broken)} files are" if len(broken) > 1 else "one file is"
        raise EvaluationError(
            f"{broken[-1]}; {number} no sound record: mend or remove it, or go on "
            "without with --skip-broken"
        )


def _sections(
    folder: Path | None,
    dataset: str | None,
    score: str | None,
    protocol: str | None,
    published: bool,
    skip_broken: bool,
) -> "list[Section]":
    """Read, report what is broken, choose, group."""
    from genlab.eval.leaderboard import published as papers
    from genlab.eval.leaderboard.board import arrange, read_default, read_folder, select

    entries, broken = read_default(DEFAULT) if folder is None else read_folder(folder)
    _report(broken, skip_broken)
    rows = papers.published() if published and protocol is None else ()
    rows = tuple(row for row in rows if dataset in (None, row.dataset) and _has(row, score))
    if entries and not (dataset and rows and all(e.record.dataset != dataset for e in entries)):
        entries = select(entries, dataset, score, protocol)
    else:
        entries = []
    with plain_warnings():
        return arrange(entries, rows)


def _has(record: "Record", score: str | None) -> bool:
    return score is None or score in record.scores


def _ours_or_asked(sections: "list[Section]", dataset: str | None) -> "list[Section]":
    """Published scores, of data sets without own records only on request."""
    return [section for section in sections if dataset or section.groups]


def _write(output: Path, text: str, sections: "Sequence[Section]") -> None:
    from genlab.files import write_text

    if str(output) == "-":
        click.echo(text, nl=False)
        return
    write_text(output, text)
    records = sum(len(group.entries) for section in sections for group in section.groups)
    click.echo(f"wrote {output}: {records} records, {len(text.encode()) / 2**20:.1f} MiB")
