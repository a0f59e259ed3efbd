"""The leaderboard as CSV, for analysis, and as Markdown, for a README."""

import csv
import io
from collections.abc import Iterator, Sequence

from genlab.eval.leaderboard.board import Column, Entry, Group, Section
from genlab.eval.leaderboard.records import Record
from genlab.eval.leaderboard.wording import (
    COSTS,
    arrow,
    column_notes,
    cost_text,
    entry_names,
    group_title,
    sampling_text,
    score_text,
    source_url,
)

CSV_COLUMNS = (
    "dataset", "protocol", "group", "model", "score", "value", "low", "high", "rank", "tied",
    "nfe", "seconds_per_image", "sampling", "created", "record", "source",
)  # fmt: skip


def to_csv(sections: Sequence[Section]) -> str:
    """One line for every score; ``group`` is equal where scores were made alike.

    Values have all their digits. Published scores have a source and neither group nor rank.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for section in sections:
        for group in section.groups:
            writer.writerows(_score_rows(group))
        for record in section.published:
            writer.writerows(_published_rows(record))
    return text.getvalue()


def _score_rows(group: Group) -> Iterator[dict[str, object]]:
    for column in (*group.columns, *group.details):
        for entry in group.entries:
            if score := column.cells.get(entry.key):
                place = column.ranks.get(entry.key)
                yield _shared(entry.record) | {
                    "protocol": _plain(entry.record.protocol.get("name") or ""),
                    "group": group.key,
                    "score": _plain(column.score),
                    "value": repr(score.value),
                    "low": "" if score.low is None else repr(score.low),
                    "high": "" if score.high is None else repr(score.high),
                    "rank": "" if place is None else place.place,
                    "tied": "" if place is None else int(place.tied),
                    "record": entry.key,
                }


def _published_rows(record: Record) -> Iterator[dict[str, object]]:
    for name, score in record.scores.items():
        described = _plain(record.protocol.get("described", ""))
        yield _shared(record) | {"score": name, "value": repr(score.value), "protocol": described}


def _shared(record: Record) -> dict[str, object]:
    return {
        "dataset": _plain(record.dataset),
        "model": _plain(record.model),
        "nfe": record.cost.get("nfe", ""),
        "seconds_per_image": record.cost.get("seconds_per_image", ""),
        "sampling": _plain(sampling_text(record)),
        "created": _plain(record.created),
        "source": _plain(record.source),
    }


def _plain(text: object) -> str:
    """A cell that a spreadsheet takes for text: one that starts like a formula gets an apostrophe.

    >>> _plain("=HYPERLINK(1)"), _plain("edm")
    ("'=HYPERLINK(1)", 'edm')
    """
    cell = str(text)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def to_markdown(sections: Sequence[Section]) -> str:
    """One table for every protocol; published rows follow in italics, without a rank."""
    parts: list[str] = []
    for section in sections:
        parts.append(f"## {_escape(section.dataset)}")
        parts += [_group_table(group, section.beside(group)) for group in section.groups]
        if alone := section.alone():
            parts.append(_published_table(alone))
    return "\n\n".join(parts) + "\n"


def _group_table(group: Group, published: Sequence[Record]) -> str:
    heads = [
        " ".join(part for part in (_escape(column.score), _escape(note), arrow(column)) if part)
        for column, note in zip(group.columns, column_notes(group), strict=True)
    ]
    called = entry_names(group)
    rows = [_own_cells(group, entry, called[entry.key]) for entry in group.entries]
    rows += [_published_cells(record, [c.score for c in group.columns]) for record in published]
    title = f"**{_escape(' / '.join(group.names))}**: {_escape(group_title(group))}"
    return f"{title}\n\n{_table(['#', 'model', *heads, 'NFE', 's/image'], rows)}"


def _published_table(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(name for record in records for name in record.scores))
    rows = [_published_cells(record, names) for record in records]
    return f"**published**\n\n{_table(['#', 'model', *names, 'NFE', 's/image'], rows)}"


def _own_cells(group: Group, entry: Entry, name: str) -> list[str]:
    first = group.columns[0].ranks.get(entry.key)
    scores = [_own_score(column, entry.key) for column in group.columns]
    costs = [cost_text(entry.record, cost) for cost in COSTS]
    return [str(first or ""), _escape(name), *scores, *costs]


def _own_score(column: Column, key: str) -> str:
    score, place = column.cells.get(key), column.ranks.get(key)
    text = score_text(score) if score else ""
    return f"**{text}**" if place is not None and place.place == 1 else text


def _published_cells(record: Record, names: Sequence[str]) -> list[str]:
    model, url = _escape(record.model), source_url(record.source)
    scores = [
        score_text(record.scores[name], published=True) if name in record.scores else ""
        for name in names
    ]
    costs = [cost_text(record, cost) for cost in COSTS]
    return ["", f"*[{model}]({url})*" if url else f"*{model}*", *scores, *costs]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if head in ("#", "model") else "---:" for head in heads]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _escape(text: str) -> str:
    r"""Text that Markdown shows as it is.

    >>> _escape("a|b <script> [x]_y")
    'a\\|b &lt;script&gt; \\[x\\]\\_y'
    """
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!~" else c for c in plain)
