"""Nested metadata (protocols, settings): compared and flattened, with their differences."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NOT_SAID = "not said"
"""Stands in `differences` for a key that a mapping does not have."""


def canonical(value: Any) -> str:
    """JSON that is equal for equal metadata, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def differences(metadata: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Where nested metadata are not all the same.

    Returns:
        Dotted key -> its value in each of them, `NOT_SAID` where one does not have it.

    >>> differences([{"count": 2000, "labels": "random"}, {"count": 5000, "labels": "random"}])
    {'count': (2000, 5000)}
    """
    flat = [dict(flatten(each)) for each in metadata]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = {key: tuple(each.get(key, NOT_SAID) for each in flat) for key in keys}
    return {key: row for key, row in rows.items() if len(set(map(canonical, row))) > 1}


def flatten(metadata: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested metadata as dotted keys and plain values, as overrides on the command line write them.

    >>> dict(flatten({"guidance": [{"name": "cfg", "scale": 2.0}], "seeds": "0-9"}))
    {'guidance.0.name': 'cfg', 'guidance.0.scale': 2.0, 'seeds': '0-9'}
    """
    inner: Any = None
    if isinstance(metadata, Mapping):
        inner = metadata.items()
    elif isinstance(metadata, list) and any(isinstance(each, (Mapping, list)) for each in metadata):
        inner = enumerate(metadata)
    if not inner:
        if prefix:
            yield prefix, metadata
        return
    for key, value in inner:
        yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
