"""The records of a leaderboard: one score card, one file, that can be merged in git.

A file's name is made of model, protocol and a hash of the content, so that people and machines who
add records never write the same file with other content, and the same record added twice is one
file. Reading checks everything: a record is shown on a page and ranked against others, so a wrong
type or a number that is not one must not get that far.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from genlab.errors import EvaluationError, nearest, reading
from genlab.eval.leaderboard.strict_json import (
    check_metadata,
    check_name,
    check_picture,
    check_text,
    kind,
    number,
    read_json,
    shown,
)
from genlab.files import write_text

SCHEMA = 1
"""Version of the format; a reader refuses all others."""

REQUIRED = ("model", "dataset", "scores", "protocol")
HASH_DIGITS = 12
MEAN_TOLERANCE = 1e-6
"""Relative; a value is the mean of its repeats, never the best of them."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score of one model.

    Attributes:
        value: the score; over repeats, their mean.
        low: lower end of the 95 % interval of the mean, or None where there was one run.
        high: upper end.
        values: of the single repeats.
    """

    value: float
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """Scores of one model, sampled in one way, measured in one way.

    Attributes:
        model: its name.
        dataset: what it generates, as the leaderboard groups it: ``fmnist``, ``cifar10``.
        scores: full score name (``fid``, ``fd[cnn-fmnist]``) -> score.
        protocol: all that must be equal for two scores to be ranked together: ``name`` (``edm-50k``
            or None), ``extractor``, ``pixel_rule``, ``reference``, ``count``, ``labels``,
            ``metrics`` (their settings).
        sampling: how the model was sampled: ``sampler`` (solver, schedule, guidance), ``seeds``,
            ``nfe``, ``dtype``, ``ema``; ``stitch``: of a stitched run, what each model cost and
            ``time_saved``, the share of the time.
        provenance: which model: ``family``, ``weights_sha256``, ``parameters``.
        environment: ``versions``, ``device``, ``tf32``, ``processes``.
        cost: ``nfe``, ``seconds_per_image``, ``peak_memory_mib``; any of them may be missing.
        picture: a PNG of samples, as base64 text; empty for none.
        created: UTC time, ISO 8601.
        source: for a published score, where it stands; empty for our own.
        notes: anything else.
    """

    model: str
    dataset: str
    scores: Mapping[str, Score]
    protocol: Mapping[str, Any]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    picture: str = ""
    created: str = ""
    source: str = ""
    notes: str = ""


def to_json(record: Record) -> dict[str, Any]:
    """A record as plain JSON values, in the order in which files show them (the picture last).

    Raises:
        EvaluationError: a value has no place in JSON, or is not finite.
    """
    plain = {"schema": SCHEMA, **vars(record)}
    plain["scores"] = {name: vars(score) for name, score in record.scores.items()}
    plain["picture"] = plain.pop("picture")
    try:
        return json.loads(json.dumps(plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"the record of {record.model!r} is no JSON: {error}") from error


def from_json(plain: Any, where: str = "the record") -> Record:
    """A record from JSON values, all of them checked.

    Args:
        plain: what a file holds.
        where: how errors call it.

    Raises:
        EvaluationError: the schema is another one, a key is missing or unknown, a value has the
            wrong type or is not finite.
    """
    if not isinstance(plain, dict):
        raise EvaluationError(f"{where} must hold one JSON object, not {kind(plain)}")
    if plain.get("schema") != SCHEMA or isinstance(plain["schema"], bool):
        raise EvaluationError(
            f"{where} has schema {shown(plain.get('schema'))} and this version reads {SCHEMA}; "
            "'genlab eval' writes such records, a newer GenLab reads newer ones"
        )
    names = [each.name for each in fields(Record)]
    for key in sorted(plain.keys() - {"schema", *names}):
        raise EvaluationError(f"{where} has an unknown key {key!r}; {nearest(key, names)}")
    for key in REQUIRED:
        if key not in plain:
            raise EvaluationError(f"{where} has no {key!r}; a record needs {', '.join(REQUIRED)}")
    values = {key: value for key, value in plain.items() if key != "schema"}
    for key, value in values.items():
        _CHECKS.get(key, check_metadata)(value, f"{where}: {key}")
    scores = {
        name: _score(score, f"{where}: the score {name}")
        for name, score in values.pop("scores").items()
    }
    cost = {name: float(spent) for name, spent in values.pop("cost", {}).items()}
    return Record(scores=scores, cost=cost, **values)


def record_id(record: Record) -> str:
    """Hash of all that a record says, whatever its file looks like."""
    text = json.dumps(to_json(record), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def file_name(record: Record) -> str:
    """Model, protocol and hash.

    >>> file_name(Record(model="EDM / 9 steps", dataset="fmnist", scores={}, protocol={}))
    'edm-9-steps--custom--e8a95da827b8.json'
    """
    protocol = record.protocol.get("name") or "custom"
    return f"{_slug(record.model)}--{_slug(str(protocol))}--{record_id(record)}.json"


def _slug(text: str) -> str:
    """Part of a file name, safe on every system: no separators, no capitals, not too long."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:48].strip("-") or "unnamed"


def write_record(folder: Path, record: Record) -> Path:
    """Write a record into a folder, whole or not at all.

    Returns:
        The file; the same record again gives the same file with the same bytes.

    Raises:
        EvaluationError: the record would not be read back.
        OutputError: the folder cannot be written.
    """
    checked = from_json(to_json(record), f"the record of {record.model!r}")
    path = Path(folder) / file_name(checked)
    write_text(path, to_text(checked))
    return path


def to_text(record: Record) -> str:
    """A record as its file holds it.

    Raises:
        EvaluationError: a value has no place in JSON, or is not finite.
    """
    ordered = {key: _sorted(value) for key, value in to_json(record).items()}
    return json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"


def _sorted(value: Any) -> Any:
    """Nested keys in alphabetical order, so that files of one kind differ only in values."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value


def read_record(path: Path) -> Record:
    """Read one file.

    Raises:
        EvaluationError: it cannot be read, is not whole JSON, or is no record; names the file.
    """
    with reading(path, EvaluationError, "mend or remove it"):
        return from_json(read_json(path), str(path))


def _check_scores(value: Any, where: str) -> None:
    if not isinstance(value, dict) or not value:
        raise EvaluationError(f"{where} must be an object with at least one score")
    for name in value:
        check_name(name, f"{where}: a score's name")


def _check_cost(value: Any, where: str) -> None:
    check_metadata(value, where)
    for name, spent in value.items():
        if number(spent, f"{where}.{name}") < 0:
            raise EvaluationError(f"{where}.{name} must not be negative, got {spent!r}")


def _check_protocol(value: Any, where: str) -> None:
    check_metadata(value, where)
    if value.get("name") is not None:
        check_name(value["name"], f"{where}.name")


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "model": check_name,
    "dataset": check_name,
    "scores": _check_scores,
    "protocol": _check_protocol,
    "cost": _check_cost,
    "picture": check_picture,
    "created": check_text,
    "source": check_text,
    "notes": check_text,
}
"""Field -> its check; all others hold metadata of any kind."""


def _score(plain: Any, where: str) -> Score:
    if not isinstance(plain, dict) or "value" not in plain:
        raise EvaluationError(f"{where} must be an object with a value, got {shown(plain)}")
    names = [each.name for each in fields(Score)]
    for key in sorted(plain.keys() - set(names)):
        raise EvaluationError(f"{where} has an unknown key {key!r}; {nearest(key, names)}")
    runs = plain.get("values", [])
    if not isinstance(runs, list):
        raise EvaluationError(f"{where}: values must be a list, got {kind(runs)}")
    value = number(plain["value"], where)
    values = tuple(number(run, f"{where}: values") for run in runs)
    low, high = (
        None if plain.get(end) is None else number(plain[end], f"{where}: {end}")
        for end in ("low", "high")
    )
    if (low, high) != (None, None) and (low is None or high is None or not low <= value <= high):
        raise EvaluationError(f"{where}: low, {value!r}, high must rise, got {low} and {high}")
    if values and not math.isclose(
        math.fsum(run / len(values) for run in values), value, rel_tol=MEAN_TOLERANCE, abs_tol=1e-12
    ):
        raise EvaluationError(f"{where} is {value!r} and the mean of its values is another number")
    return Score(value=value, low=low, high=high, values=values)
