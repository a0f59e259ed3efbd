"""Counts of a sampler beside network evaluations, for manifests and records."""

from collections.abc import Iterable, Mapping
from typing import Any

Tallies = Mapping[str, Mapping[str, float]]
"""Topic -> name -> number. Whole numbers are counts, which add up over batches, processes and
sittings; the others are values of the whole run, the same in every batch.

A topic that counts ``tries`` and ``accepted`` gets a rate, one that counts ``evaluations`` and
``images`` the evaluations of an image."""

REJECTION = "rejection"
TOPICS = (REJECTION,)
"""All topics; each stands under its name in manifests and records."""


def add_up(parts: Iterable[Tallies]) -> dict[str, dict[str, float]]:
    """The tallies of several batches.

    >>> add_up([{"a": {"n": 1, "level": 0.5}}, {"a": {"n": 2, "level": 0.5}}])
    {'a': {'n': 3, 'level': 0.5}}
    """
    whole: dict[str, dict[str, float]] = {}
    for tallies in parts:
        for topic, numbers in tallies.items():
            kept = whole.setdefault(topic, {})
            for name, number in numbers.items():
                kept[name] = kept.get(name, 0) + number if isinstance(number, int) else number
    return whole


def with_rates(tallies: Tallies) -> dict[str, Any]:
    """Tallies with the rates that follow from them, topic by topic.

    >>> with_rates({"a": {"images": 3, "tries": 4, "accepted": 3, "evaluations": 9}})["a"]["nfe"]
    3.0
    """
    extended: dict[str, Any] = {}
    for topic, numbers in tallies.items():
        extended[topic] = dict(numbers)
        if numbers.get("tries"):
            extended[topic]["acceptance_rate"] = round(numbers["accepted"] / numbers["tries"], 6)
        if numbers.get("images") and "evaluations" in numbers:
            extended[topic]["nfe"] = round(numbers["evaluations"] / numbers["images"], 6)
    return extended


def mean_nfe(tallies: Tallies) -> float | None:
    """Evaluations of an image in a run whose images cost differently much; None for any other."""
    counted = [numbers["nfe"] for numbers in with_rates(tallies).values() if "nfe" in numbers]
    return counted[0] if counted else None
