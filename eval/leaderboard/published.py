"""Scores that papers report: records that stand beside ours and are never ranked with them."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from genlab.eval.leaderboard.records import Record, Score, from_json, to_json

FILE = "published.yaml"


@dataclass(kw_only=True)
class PublishedRow:
    """One row of published.yaml.

    Attributes:
        dataset: as the leaderboard groups it.
        model: as its authors call it.
        scores: name -> value, digit for digit.
        protocol: how it was evaluated, in words.
        source: paper with arXiv number, or repository.
        sampling: how it was sampled, in words.
        nfe: network evaluations an image, where the source counts them.
        seconds: an image, where they were measured; ``notes`` says by whom.
        notes: anything else.
    """

    dataset: str
    model: str
    scores: dict[str, float]
    protocol: str
    source: str
    sampling: str = ""
    nfe: int | None = None
    seconds: float | None = None
    notes: str = ""


@cache
def published() -> tuple[Record, ...]:
    """All rows as records, in the order of the file.

    Their protocol holds a single key, ``described``, so that no record of ours has an equal one.
    """
    text = files("genlab.eval.leaderboard").joinpath(FILE).read_text(encoding="utf-8")
    table: Any = OmegaConf.create(text)
    return tuple(_record(row) for row in table.rows)


def _record(plain: Any) -> Record:
    row = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PublishedRow), plain))
    assert isinstance(row, PublishedRow)
    cost = {"nfe": row.nfe, "seconds_per_image": row.seconds}
    record = Record(
        model=row.model,
        dataset=row.dataset,
        scores={name: Score(value=value) for name, value in row.scores.items()},
        protocol={"described": row.protocol},
        sampling={"described": row.sampling} if row.sampling else {},
        cost={name: float(spent) for name, spent in cost.items() if spent is not None},
        source=row.source,
        notes=row.notes,
    )
    return from_json(to_json(record), f"{FILE}: {row.model}")
