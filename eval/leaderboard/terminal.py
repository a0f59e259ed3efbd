"""The leaderboard in a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from genlab.errors import escaped
from genlab.eval.leaderboard.board import Column, Group, Section
from genlab.eval.leaderboard.ranking import plain_name
from genlab.eval.leaderboard.records import Record
from genlab.eval.leaderboard.wording import (
    COSTS,
    arrow,
    column_notes,
    cost_text,
    entry_names,
    group_title,
    score_text,
    value_text,
)

MODEL_WIDTH = 36
PIPE_WIDTH = 100_000
"""Nothing is wrapped or left out in a pipe."""


@dataclass(frozen=True)
class _Row:
    """One line: a place (empty for published scores), a name, and one cell for each score."""

    place: str
    model: str
    cells: Sequence[str]
    costs: Sequence[str]
    style: str = ""


def print_sections(sections: Sequence[Section], width: int | None) -> None:
    """Print tables, best first; what people wrote into records cannot steer the terminal.

    Args:
        sections: from `genlab.eval.leaderboard.board.arrange`.
        width: of the terminal: scores that do not fit are named below the table; None shows all.
    """
    console = Console(width=width or PIPE_WIDTH, highlight=False, soft_wrap=True)
    for section in sections:
        console.print(Text(escaped(section.dataset), style="bold underline"))
        for number, group in enumerate(section.groups, start=1):
            label = f"protocol {number}, " if len(section.groups) > 1 else ""
            names = f"{label}{' / '.join(group.names)} ({group.key})"
            console.print(Text(escaped(f"{names}: {group_title(group)}"), style="bold"))
            _print_group(console, group, section.beside(group))
        _print_differences(console, section)
        if alone := section.alone():
            console.print(Text("published, protocols known in words only", style="dim"))
            _print_published(console, alone)


def _print_differences(console: Console, section: Section) -> None:
    if section.differing:
        console.print(Text("what differs between these protocols", style="bold"))
    for key, values in section.differing.items():
        text = "   ".join(f"{i}: {value_text(value)}" for i, value in enumerate(values, start=1))
        console.print(Text(escaped(f"  {key}   {text}")))


def _print_group(console: Console, group: Group, beside: Sequence[Record]) -> None:
    names = [column.score for column in group.columns]
    notes = column_notes(group)
    heads = [_head(column, note) for column, note in zip(group.columns, notes, strict=True)]
    rows, called = [], entry_names(group)
    for entry in group.entries:
        scores = [column.cells.get(entry.key) for column in group.columns]
        place = group.columns[0].ranks.get(entry.key)
        cells = [score_text(score) if score else "" for score in scores]
        rows.append(_Row(str(place or ""), called[entry.key], cells, _costs(entry.record)))
    rows += [_published_row(record, names) for record in beside]
    _print_table(console, heads, rows)


def _print_published(console: Console, records: Sequence[Record]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record.scores))
    _print_table(console, names, [_published_row(record, names) for record in records])


def _published_row(record: Record, names: Sequence[str]) -> _Row:
    scores = [record.scores.get(name) for name in names]
    cells = [score_text(score, published=True) if score else "" for score in scores]
    return _Row("", f"{record.model} ({record.source})", cells, _costs(record), "dim")


def _costs(record: Record) -> list[str]:
    return [cost_text(record, cost) for cost in COSTS]


def _head(column: Column, note: str) -> str:
    plain, extractor = plain_name(column.score)
    lines = (f"{plain} {arrow(column)}".strip(), f"[{extractor}]" if extractor else "", note)
    return "\n".join(line for line in lines if line)


def _print_table(console: Console, heads: Sequence[str], rows: Sequence[_Row]) -> None:
    shown = next(
        (n for n in range(len(heads), 1, -1) if _fits(console, _table(console, heads[:n], rows))),
        min(1, len(heads)),
    )
    console.print(_table(console, heads[:shown], rows), soft_wrap=False)
    if left := [escaped(" ".join(head.split("\n"))) for head in heads[shown:]]:
        console.print(Text(f"not shown for want of room (--score): {', '.join(left)}\n", "dim"))


def _table(console: Console, heads: Sequence[str], rows: Sequence[_Row]) -> Table:
    """The table with these scores; models fold before a number is cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", no_wrap=True)
    narrow = console.width < PIPE_WIDTH
    table.add_column("model", overflow="fold", max_width=MODEL_WIDTH if narrow else None)
    for head in (*heads, "NFE", "s/image"):
        table.add_column(Text(_escaped_lines(head)), justify="right", no_wrap=True)
    for row in rows:
        cells = (row.place, row.model, *row.cells[: len(heads)], *row.costs)
        table.add_row(*(Text(escaped(cell)) for cell in cells), style=row.style)
    return table


def _fits(console: Console, table: Table) -> bool:
    """Whether every column has the width that it wants."""
    return Measurement.get(console, console.options, table).maximum < console.width


def _escaped_lines(text: str) -> str:
    """Like `escaped`, line by line."""
    return "\n".join(map(escaped, text.split("\n")))
