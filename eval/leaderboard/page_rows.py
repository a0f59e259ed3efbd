"""The rows of the page: records in the form that the template takes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from genlab.eval.leaderboard.board import Group
from genlab.eval.leaderboard.facts import flatten
from genlab.eval.leaderboard.ranking import plain_name
from genlab.eval.leaderboard.records import Record, Score
from genlab.eval.leaderboard.wording import (
    COSTS,
    cost_text,
    sampling_text,
    score_text,
    source_url,
    value_text,
)

_CARD = {
    "protocol": "protocol",
    "sampling": "sampling",
    "provenance": "model",
    "environment": "environment",
    "cost": "cost",
}
"""Field of a record -> the heading of its part of the card."""


def own_row(
    group: Group, key: str, record: Record, notes: Sequence[str], name: str
) -> dict[str, Any]:
    """A record of ours, with its places, under a name that no other of the group has."""
    cells, points, ranks = [], [], []
    for column, note in zip(group.columns, notes, strict=True):
        score, rank = column.cells.get(key), column.ranks.get(key)
        text = score_text(score) if score else ""
        place = f"place {rank} by {column.score}" if rank else ""
        best = rank is not None and rank.place == 1 and len(column.cells) > 1
        cells.append(_cell(column.score, text, score.value if score else None, note, place, best))
        ranks.append(str(rank or "-"))
        points.append(_point(score, text))
    parts = (sampling_text(record), str(record.environment.get("device", "")), record.created[:10])
    summary = ", ".join(part for part in parts if part) or "protocol card"
    return {
        **_row(record, f"r-{key}", cells, points, group.names),
        "model": name,
        "key": key,
        "ranks": ranks,
        "place": "" if ranks[0] == "-" else ranks[0],
        "summary": summary,
    }


def published_row(
    record: Record, names: Sequence[str], notes: Sequence[str], anchor: str
) -> dict[str, Any]:
    """A published record: no place, and its protocol in words."""
    cells, points = [], []
    for name, note in zip(names, notes, strict=True):
        score = record.scores.get(name)
        text = score_text(score, published=True) if score else ""
        cells.append(_cell(name, text, score.value if score else None, note))
        points.append(_point(score, text))
    words = (sampling_text(record), str(record.protocol.get("described", "")), record.notes)
    return {
        **_row(record, anchor, cells, points, ("published",)),
        "key": anchor,
        "ranks": ["-"] * len(names),
        "place": "",
        "summary": "; ".join(("published", *(word for word in words if word))),
    }


def _row(
    record: Record,
    anchor: str,
    cells: Sequence[dict[str, Any]],
    points: Sequence[Any],
    names: Sequence[str],
) -> dict[str, Any]:
    """What rows of both kinds share."""
    family = str(record.provenance.get("family", ""))
    costs = [
        _cell(label, cost_text(record, cost), record.cost.get(cost))
        for cost, label in (("nfe", "NFE"), ("seconds_per_image", "s/image"))
    ]
    words = (record.model, family, record.dataset, sampling_text(record), *names, *record.scores)
    return {
        "anchor": anchor,
        "model": record.model,
        "family": family,
        "picture": record.picture,
        "published": bool(record.source),
        "source": record.source,
        "url": source_url(record.source),
        "cells": [*cells, *costs],
        "points": points,
        "costs": {cost: record.cost[cost] for cost in COSTS if cost in record.cost},
        "sampling": sampling_text(record),
        "text": " ".join(words).lower(),
        "card": list(_card(record)),
    }


def _cell(
    name: str, text: str, value: float | None, note: str = "", title: str = "", best: bool = False
) -> dict[str, Any]:
    number, _, margin = text.partition(" ± ")
    return {
        "value": number,
        "margin": f"± {margin}" if margin else "",
        "sort": "" if value is None else repr(value),
        "label": f"{plain_name(name)[0]} {note}".strip(),
        "title": title,
        "best": best,
    }


def _point(score: Score | None, text: str) -> list[Any] | None:
    """A score for the chart: value, lower end, upper end, text."""
    if score is None:
        return None
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return [score.value, low, high, text]


def _card(record: Record) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for name, heading in _CARD.items():
        if rows := metadata(getattr(record, name)):
            yield heading, rows
    about = {"created": record.created, "notes": record.notes}
    if rows := [(key, value) for key, value in about.items() if value]:
        yield "record", rows


def metadata(nested: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested metadata as the lines of a card."""
    return [(key, value_text(value)) for key, value in flatten(nested)]
