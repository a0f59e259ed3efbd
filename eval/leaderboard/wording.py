"""Scores, costs and settings as people read them: the same words in terminal, page and tables."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from genlab.eval.leaderboard.board import Column, Entry, Group
from genlab.eval.leaderboard.facts import differences
from genlab.eval.leaderboard.ranking import plain_name
from genlab.eval.leaderboard.records import Record, Score

SIGNIFICANT = 4
"""Digits of a score without an interval."""

LARGE = 1e9
"""From here on numbers have an exponent."""

_ORDER = {"solver": 0, "decoder": 0, "schedule": 1, "guidance": 2}

COSTS = {"nfe": "network evaluations per image", "seconds_per_image": "seconds per image"}
"""Key of a cost -> its name; quality is drawn against these."""


def score_text(score: Score, published: bool = False) -> str:
    """A score with as many digits as it deserves.

    With an interval, two digits of its half width decide; a single run shows four digits; a
    published score shows what was published, two decimals at least.

    >>> score_text(Score(value=3.14159, low=3.09, high=3.19))
    '3.142 ± 0.050'
    >>> score_text(Score(value=2.0)), score_text(Score(value=1.7), published=True)
    ('2.000', '1.70')
    """
    value = score.value
    if published:
        return f"{value:.2f}" if abs(value) < LARGE and round(value, 2) == value else repr(value)
    if score.low is None or score.high is None:
        return number_text(value)
    # Halves first: the difference of two large numbers may be none.
    half = float(f"{score.high / 2 - score.low / 2:.1e}")  # so that 0.0999... has 0.1's digits
    if not half:
        return f"{number_text(value)} ± 0"
    if half < 1e-4 or abs(value) >= LARGE or half >= LARGE:
        return f"{value:.3e} ± {half:.1e}"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{value:.{decimals}f} ± {half:.{decimals}f}"


def number_text(value: float) -> str:
    """Four significant digits, with an exponent only for the very small and the very large.

    >>> [number_text(v) for v in (0.0, 0.78125, 278.24, 12345.6, 0.0000123)]
    ['0', '0.7812', '278.2', '12346', '1.230e-05']
    """
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -5 < size < 9:
        return f"{value:.{SIGNIFICANT - 1}e}"
    return f"{value:.{max(0, SIGNIFICANT - 1 - size)}f}"


def cost_text(record: Record, cost: str) -> str:
    """What an image cost; empty where it was not measured."""
    spent = record.cost.get(cost)
    if spent is None:
        return ""
    return f"{spent:.0f}" if spent == round(spent) and spent < 1e6 else f"{spent:.3g}"


def arrow(column: Column) -> str:
    """Which way is better."""
    return {True: "↓", False: "↑", None: ""}[column.lower]


def entry_names(group: Group) -> dict[str, str]:
    """Key of an entry -> how its row is called: the model, and where several have it, whose it is.

    ``edm-fmnist (bundled, 03b7d2)`` came with GenLab, ``edm-fmnist (2026-11-30, 4f2a91)`` did not;
    the digits begin the record's hash, which ends the name of its file.
    """
    counts = Counter(entry.record.model for entry in group.entries)
    return {
        entry.key: entry.record.model
        if counts[entry.record.model] == 1
        else f"{entry.record.model} ({_whose(entry)})"
        for entry in group.entries
    }


def _whose(entry: Entry) -> str:
    parts = [entry.origin or entry.record.created[:10], entry.key[:6]]
    return ", ".join(part for part in parts if part)


def column_notes(group: Group) -> list[str]:
    """What sets a column apart from another of the same name: the settings in which they differ."""
    notes = []
    for column in group.columns:
        twins = [other for other in group.columns if other.score == column.score]
        rows = differences([{"settings": twin.settings} for twin in twins])
        here = [twin is column for twin in twins].index(True)
        parts = [f"{key.removeprefix('settings.')}={row[here]}" for key, row in rows.items()]
        notes.append(", ".join(parts))
    return notes


def group_title(group: Group) -> str:
    """What a group's scores were made with, in a line."""
    metadata = group.protocol
    parts = []
    if isinstance(count := metadata.get("count"), int):
        parts.append(f"{count:,} images")
    if name := _name(metadata.get("reference")):
        parts.append(f"against {name}")
    extractors = {plain_name(column.score)[1] for column in group.columns} - {""}
    if name := _name(metadata.get("extractor")) or ", ".join(sorted(extractors)):
        parts.append(f"extractor {name}")
    if labels := metadata.get("labels"):
        parts.append(f"labels {labels}")
    return ", ".join(parts) or "a protocol that says nothing"


def _name(metadata: Any) -> str:
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""


def sampling_text(record: Record) -> str:
    """How a model was sampled, in a line: ``heun, karras, 18 steps, cfg 1.5``."""
    if described := record.sampling.get("described"):
        return str(described)
    sampler = record.sampling.get("sampler")
    if not isinstance(sampler, Mapping):
        return str(sampler or "")
    keys = sorted(sampler, key=lambda key: (_ORDER.get(key, len(_ORDER)), key))
    return ", ".join(part for key in keys for part in _sampler_parts(key, sampler[key]))


def _sampler_parts(key: str, value: Any) -> Iterator[str]:
    """The names and the two settings that matter most; the card has the rest."""
    if isinstance(value, list):
        for each in value:
            yield from _sampler_parts(key, each)
    elif not isinstance(value, Mapping):
        if value is not None and value is not False:
            yield f"{key} {value}"
    else:
        name, scale, steps = (value.get(each) for each in ("name", "scale", "num_steps"))
        if name is not None:
            yield f"{name} {scale}" if scale is not None else str(name)
        if steps is not None:
            yield f"{steps} steps"


def source_url(source: str) -> str:
    """Where a source is to be read: its arXiv page or its https address, else nothing.

    >>> source_url("Karras et al. 2022, Table 2, arXiv:2206.00364")
    'https://arxiv.org/abs/2206.00364'
    """
    if arxiv := re.search(r"arXiv:(\d{4}\.\d{4,5})", source):
        return f"https://arxiv.org/abs/{arxiv[1]}"
    address = re.search(r"https://[\w./~%+-]+", source, re.ASCII)
    return address[0] if address else ""


def value_text(value: Any) -> str:
    """Any plain value of a card.

    >>> [value_text(v) for v in ("heun", 18, None, True, [64, 3])]
    ['heun', '18', 'none', 'yes', '[64, 3]']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ([], {}):
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
