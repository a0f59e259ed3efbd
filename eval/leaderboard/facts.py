"""Nested metadata (protocols, settings): compared and flattened, with their differences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_SAID = "not said"
"""Stands in `differences` for a key that a mapping does not have."""


def canonical(value: Any) -> str:
    """JSON that is equal for equal facts, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def differences(facts: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Where nested facts are not all the same.

    Returns:
        Dotted key -> its value in each of them, `NOT_SAID` where one does not have it.

    >>> differences([{"count": 2000, "labels": "random"}, {"count": 5000, "labels": "random"}])
    {'count': (2000, 5000)}
    """
    flat = [dict(flatten(each)) for each in facts]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = {key: tuple(each.get(key, NOT_SAID) for each in flat) for key in keys}
    return {key: row for key, row in rows.items() if len(set(map(canonical, row))) > 1}


def flatten(facts: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts as dotted keys and plain values, as overrides on the command line write them.

    >>> dict(flatten({"guidance": [{"name": "cfg", "scale": 2.0}], "seeds": "0-9"}))
    {'guidance.0.name': 'cfg', 'guidance.0.scale': 2.0, 'seeds': '0-9'}
    """
    inner: Any = None
    if isinstance(facts, Mapping):
        inner = facts.items()
    elif isinstance(facts, list) and any(isinstance(each, (Mapping, list)) for each in facts):
        inner = enumerate(facts)
    if not inner:
        if prefix:
            yield prefix, facts
        return
    for key, value in inner:
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
