"""Finished records by the identity of what they measure, so that no sweep computes one twice."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.checkpoints.zoo.catalogue import home
from genlab.errors import GenLabError
from genlab.eval.leaderboard.records import Record, from_json, to_json
from genlab.eval.leaderboard.strict_json import read_json
from genlab.files import text_sha256, write_text


def identity_key(identity: Mapping[str, Any]) -> str:
    """The hash of an identity, see `genlab.eval.evaluate.Evaluation.identity`."""
    return text_sha256(identity)


def find(key: str) -> Record | None:
    """The record of an identity, if there is a sound one."""
    path = _path(key)
    if not path.is_file():
        return None
    try:
        return from_json(read_json(path), str(path))
    except GenLabError:  # damaged, or of another version: it is computed again
        return None


def keep(key: str, record: Record) -> None:
    """Remember a record.

    Raises:
        OutputError: the cache cannot be written.
    """
    write_text(_path(key), json.dumps(to_json(record)))


def _path(key: str) -> Path:
    return home() / "scores" / f"{key}.json"
