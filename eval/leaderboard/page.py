"""The leaderboard as one self-contained HTML file: no network, no framework, all text escaped.

Names and notes in records come from anybody. The template escapes all of them, and the page's own
content security policy lets only the one script and the one style sheet run that are part of it, by
their hashes, so that even a hole in the escaping could not run anything.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

import genlab
from genlab.eval.leaderboard.board import Column, Group, Section
from genlab.eval.leaderboard.page_rows import metadata, own_row, published_row
from genlab.eval.leaderboard.ranking import plain_name
from genlab.eval.leaderboard.records import Record
from genlab.eval.leaderboard.wording import (
    COSTS,
    arrow,
    column_notes,
    entry_names,
    group_title,
    value_text,
)

TITLE = "GenLab leaderboard"
EMPTY = (
    "No records here yet. 'genlab eval edm-fmnist --protocol offline-2k' scores a model that comes "
    "with GenLab and writes the first one, in a few minutes and without a network."
)
"""The text of every view for a folder without records."""


def render_page(sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        sections: from `genlab.eval.leaderboard.board.arrange`; those without records of ours are
            folded away at the end.

    Returns:
        HTML; the same records give the same text.
    """
    script, style = _template("leaderboard.js"), _template("leaderboard.css")
    ours = [section for section in sections if section.groups]
    others = [section for section in sections if not section.groups]
    environment = Environment(
        loader=DictLoader({"page": _template("leaderboard.html.j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page").render(
        title=TITLE,
        summary=_summary(ours),
        empty="" if ours else EMPTY,
        sections=[_section(section, f"d{i}") for i, section in enumerate(ours)],
        elsewhere=[_section(section, f"e{i}") for i, section in enumerate(others)],
        costs=COSTS,
        policy=_policy(script, style),
        script=Markup(script),
        style=Markup(style),
        footer=f"Made by genlab {genlab.__version__} from a folder of records, one JSON file each. "
        "This page is one file and loads nothing.",
    )
    return html.strip() + "\n"


def _template(name: str) -> str:
    return files("genlab.eval.leaderboard").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> str:
    allowed = [_source(text) for text in (script, style)]
    return (
        f"default-src 'none'; img-src data:; script-src {allowed[0]}; style-src {allowed[1]}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _summary(sections: Sequence[Section]) -> str:
    records = [e.record for s in sections for group in s.groups for e in group.entries]
    if not records:
        return "Scores of image generators, each with the protocol it was made by."
    newest = max(record.created for record in records)[:10]
    parts = [_count(len(records), "record"), _count(len(sections), "data set")]
    return ", ".join(parts) + (f"; the newest of {newest}" if newest else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _section(section: Section, anchor: str) -> dict[str, Any]:
    numbered = len(section.groups) > 1
    alone = section.alone()
    return {
        "anchor": anchor,
        "dataset": section.dataset,
        "groups": [
            _group(group, section.beside(group), f"{anchor}-{group.key}", number if numbered else 0)
            for number, group in enumerate(section.groups, start=1)
        ],
        "differing": [
            (key, [value_text(value) for value in values])
            for key, values in section.differing.items()
        ],
        "published": _published(alone, f"{anchor}-published") if alone else None,
    }


def _group(group: Group, beside: Sequence[Record], anchor: str, number: int) -> dict[str, Any]:
    notes = column_notes(group)
    called = entry_names(group)
    ours = [own_row(group, e.key, e.record, notes, called[e.key]) for e in group.entries]
    names = [column.score for column in group.columns]
    theirs = [
        published_row(record, names, notes, f"{anchor}-p{i}") for i, record in enumerate(beside)
    ]
    return {
        "anchor": anchor,
        "number": number,
        "name": " / ".join(group.names),
        "label": f"{group.dataset}, {' / '.join(group.names)}",
        "title": group_title(group),
        "ranked": True,
        "protocol": metadata(group.protocol),
        "columns": [_head(c, note) for c, note in zip(group.columns, notes, strict=True)],
        "rows": _by_first_column([*ours, *theirs], group.columns[0]),
        "pictures": any(row["picture"] for row in ours),
        "chart": _chart(group, [*ours, *theirs]),
    }


def _by_first_column(rows: list[dict[str, Any]], column: Column) -> list[dict[str, Any]]:
    sign = -1 if column.lower is False else 1

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        point = row["points"][0]
        return point is None, sign * point[0] if point else 0.0

    return sorted(rows, key=place)


def _published(records: Sequence[Record], anchor: str) -> dict[str, Any]:
    """A table of published scores that have no column in common with ours."""
    names = list(dict.fromkeys(name for record in records for name in record.scores))
    heads = [Column(score=n, settings=None, lower=None, cells={}, ranks={}) for n in names]
    rows = [
        published_row(record, names, [""] * len(names), f"{anchor}-p{i}")
        for i, record in enumerate(records)
    ]
    return {
        "anchor": anchor,
        "number": 0,
        "name": "published",
        "label": f"published scores of {records[0].dataset}",
        "title": "protocols known in words only; not ranked",
        "ranked": False,
        "protocol": [],
        "columns": [_head(head, "") for head in heads],
        "rows": rows,
        "pictures": False,
        "chart": None,
    }


def _head(column: Column, note: str) -> dict[str, Any]:
    plain, extractor = plain_name(column.score)
    return {
        "score": column.score,
        "plain": plain,
        "extractor": extractor,
        "note": note,
        "arrow": arrow(column),
        "higher": column.lower is False,
    }


def _chart(group: Group, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What the page's script draws: points, and the Pareto fronts that were found here."""
    columns = [(i, column) for i, column in enumerate(group.columns) if column.lower is not None]
    points = [row for row in rows if row["costs"]]
    if not columns or sum(not row["published"] for row in points) < 2:
        return None
    return {
        "costs": COSTS,
        "columns": [
            {
                "score": column.score,
                "lower": column.lower,
                "fronts": {cost: group.front(column, cost) for cost in COSTS},
            }
            for _, column in columns
        ],
        "points": [
            {
                "key": row["key"],
                "row": row["anchor"],
                "label": row["model"],
                "sampling": row["sampling"],
                "published": row["published"],
                "costs": row["costs"],
                "scores": [row["points"][i] for i, _ in columns],
            }
            for row in points
        ],
    }
