"""Queries of the leaderboard: read records, group comparable ones, rank within each group.

Two scores are ranked together if they are of one data set and everything on their protocol cards
agrees that the score depends on: extractor with the hash of its weights, pixel rule, reference with
its hash, number of images, label sampling, and the settings of the metric that made the score. Two
things on a card do not count: ``name``, which only abbreviates the rest, and the settings of other
metrics, so that a record with ``fd`` alone meets one with ``fd`` and ``cs``.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from genlab.errors import EvaluationError, UnknownNameError, nearest
from genlab.eval.leaderboard.facts import canonical, differences
from genlab.eval.leaderboard.ranking import Rank, pareto_front, plain_name, rank
from genlab.eval.leaderboard.records import Record, Score, read_record, record_id
from genlab.eval.metrics.registry import DeclaredScore, declared_scores

NOT_COUNTED = ("name", "metrics")
"""Keys of a protocol that do not split records into groups; metrics split columns instead."""

CUSTOM = "custom"
"""What a protocol without a name is called."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A record in a leaderboard.

    Attributes:
        key: `record_id` of the whole record, also if filtered.
        record: the record, or what was asked for of it.
        origin: whose it is, where that is known: ``bundled`` came with GenLab.
    """

    key: str
    record: Record
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score of a group, made with one set of settings.

    Attributes:
        score: its full name.
        settings: of the metric that made it.
        lower: whether less is better; None where neither is or no metric here declares the score:
            then nothing is ranked.
        detail: whether it only completes another score, see `ScoreInfo`.
        cells: key of an entry -> its score.
        ranks: key of an entry -> its place.
    """

    score: str
    settings: Any
    lower: bool | None
    cells: Mapping[str, Score]
    ranks: Mapping[str, Rank]
    detail: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Records of one data set whose protocols agree.

    Attributes:
        key: short hash of what they agree in.
        dataset: what the models generate.
        names: the protocol names on the cards, `CUSTOM` for none.
        protocol: what all cards agree in.
        entries: best first by the first column.
        columns: scores, the best known first.
        details: what only completes them, for those who want every number.
    """

    key: str
    dataset: str
    names: tuple[str, ...]
    protocol: Mapping[str, Any]
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    details: tuple[Column, ...] = ()

    def front(self, column: Column, cost: str) -> list[str]:
        """Keys of the entries on the Pareto front of a score against a cost, cheapest first."""
        keys = [e.key for e in self.entries if cost in e.record.cost and e.key in column.cells]
        spent = {e.key: e.record.cost.get(cost, 0.0) for e in self.entries}
        points = [(spent[key], column.cells[key].value) for key in keys]
        return [keys[i] for i in pareto_front(points, bool(column.lower))]


@dataclass(frozen=True, kw_only=True)
class Section:
    """All that is known of one data set.

    Attributes:
        dataset: its name.
        groups: our records, the largest group first.
        differing: dotted key -> its value in each group, where they are not all the same.
        published: scores from papers: shown beside ours, never ranked with them.
    """

    dataset: str
    groups: tuple[Group, ...]
    differing: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    published: tuple[Record, ...] = ()

    def beside(self, group: Group) -> list[Record]:
        """The published records that have a score in common with a group."""
        names = {column.score for column in group.columns}
        return [record for record in self.published if names & record.scores.keys()]

    def alone(self) -> list[Record]:
        """The published records that stand beside no group."""
        shown = {id(record) for group in self.groups for record in self.beside(group)}
        return [record for record in self.published if id(record) not in shown]


def read_folder(folder: Path) -> tuple[list[Entry], list[EvaluationError]]:
    """Read the JSON files that lie in a folder; the same record twice counts once.

    Returns:
        Entries in the order of the file names, and one error for each file that is no sound record.

    Raises:
        EvaluationError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(
            f"there is no folder {folder}; 'genlab eval' writes records into ./leaderboard, and "
            "--dir names another place"
        )
    entries: dict[str, Entry] = {}
    broken = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_record(path)
        except EvaluationError as error:
            broken.append(error)
        else:
            entry = Entry(key=record_id(record), record=record)
            entries.setdefault(entry.key, entry)
    return list(entries.values()), broken


def read_default(folder: Path) -> tuple[list[Entry], list[EvaluationError]]:
    """Read the records of the bundled models and those of a folder, which need not be there yet.

    Returns:
        As `read_folder`.
    """
    with as_file(files("genlab.eval").joinpath("bundled", "records")) as bundled:
        entries, broken = read_folder(bundled)
    entries = [replace(entry, origin="bundled") for entry in entries]
    if folder.exists():
        own, bad = read_folder(folder)
        entries, broken = list({entry.key: entry for entry in entries + own}.values()), broken + bad
    return entries, broken


def select(
    entries: Sequence[Entry],
    dataset: str | None = None,
    score: str | None = None,
    protocol: str | None = None,
) -> list[Entry]:
    """Keep some entries, and of their scores those asked for.

    Args:
        entries: what to choose from.
        dataset: name of a data set.
        score: full (``fd[cnn-fmnist]``) or plain name (``fd``).
        protocol: a protocol's name, `CUSTOM`, or the first digits of a group's key.

    Raises:
        UnknownNameError: nothing has this name; says what there is.
    """
    selected = list(entries)
    if dataset is not None:
        selected = [entry for entry in selected if entry.record.dataset == dataset]
        _require(selected, "data set", dataset, {e.record.dataset for e in entries})
    if protocol is not None:
        named = [entry for entry in selected if protocol_name(entry.record) == protocol]
        keyed = [entry for entry in selected if group_key(entry.record).startswith(protocol)]
        _require(named or keyed, "protocol", protocol, {protocol_name(e.record) for e in selected})
        selected = named or keyed
    if score is not None:
        names = {name for entry in selected for name in entry.record.scores}
        matches = {name for name in names if score in (name, plain_name(name)[0])}
        _require(matches, "score", score, names)
        selected = [_with_scores(entry, matches) for entry in selected]
        selected = [entry for entry in selected if entry.record.scores]
    return selected


def _require(matches: Any, kind: str, name: str, names: set[str]) -> None:
    if not matches:
        raise UnknownNameError(f"no record has the {kind} {name!r}; {nearest(name, names)}")


def _with_scores(entry: Entry, names: set[str]) -> Entry:
    scores = {name: score for name, score in entry.record.scores.items() if name in names}
    return replace(entry, record=replace(entry.record, scores=scores))


def arrange(entries: Sequence[Entry], published: Sequence[Record] = ()) -> list[Section]:
    """Group entries by data set and protocol; data sets with published scores alone come last."""
    ours = sorted({entry.record.dataset for entry in entries})
    others = [record.dataset for record in published]
    return [_section(dataset, entries, published) for dataset in dict.fromkeys([*ours, *others])]


def _section(dataset: str, entries: Sequence[Entry], published: Sequence[Record]) -> Section:
    together: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.record.dataset == dataset:
            together.setdefault(group_key(entry.record), []).append(entry)
    groups = [_group(key, members) for key, members in together.items()]
    groups.sort(key=lambda group: (-len(group.entries), group.names, group.key))
    return Section(
        dataset=dataset,
        groups=tuple(groups),
        differing=differences([group.protocol for group in groups]),
        published=tuple(record for record in published if record.dataset == dataset),
    )


def protocol_name(record: Record) -> str:
    """The name on a record's card, or `CUSTOM`."""
    return str(record.protocol.get("name") or CUSTOM)


def _counted(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.protocol.items() if key not in NOT_COUNTED}


def group_key(record: Record) -> str:
    """Eight digits that two records of a data set share if their protocols agree."""
    return hashlib.sha256(canonical(_counted(record)).encode()).hexdigest()[:8]


def _group(key: str, members: Sequence[Entry]) -> Group:
    all_columns = _columns(members)
    columns = [column for column in all_columns if not column.detail] or all_columns
    details = [column for column in all_columns if column not in columns]
    first = columns[0]
    sign = -1 if first.lower is False else 1

    def place(entry: Entry) -> tuple[bool, float, str]:
        score = first.cells.get(entry.key)
        return score is None, sign * score.value if score else 0.0, entry.record.model

    return Group(
        key=key,
        dataset=members[0].record.dataset,
        names=tuple(sorted({protocol_name(entry.record) for entry in members})),
        protocol=_counted(members[0].record),
        entries=tuple(sorted(members, key=place)),
        columns=tuple(columns),
        details=tuple(details),
    )


def _columns(members: Sequence[Entry]) -> list[Column]:
    """A column for each score and each set of its settings, in the order in which tables show them.

    Ranked scores come first, as their metrics are registered; all others follow by name.
    """
    made_by = [entry.record.protocol.get("metrics") for entry in members]
    needed = {name for metrics in made_by if isinstance(metrics, Mapping) for name in metrics}
    declared = declared_scores(needed)
    ranked = [name for name, score in declared.items() if score.info.lower_is_better is not None]
    cells: dict[tuple[int, str, str], dict[str, Score]] = {}
    settings: dict[tuple[int, str, str], Any] = {}
    for entry in members:
        for name, score in entry.record.scores.items():
            plain = plain_name(name)[0]
            made_with = _settings(entry.record, declared.get(plain))
            position = ranked.index(plain) if plain in ranked else len(ranked)
            place = (position, name, canonical(made_with))
            cells.setdefault(place, {})[entry.key] = score
            settings[place] = made_with
    return [
        _column(place[1], settings[place], cells[place], declared.get(plain_name(place[1])[0]))
        for place in sorted(cells)
    ]


def _settings(record: Record, declared: DeclaredScore | None) -> Any:
    """Settings of the metric that made a score; of a score we do not know, of all metrics."""
    metrics = record.protocol.get("metrics")
    if declared is None or not isinstance(metrics, Mapping):
        return metrics
    return metrics.get(declared.metric)


def _column(
    score: str, settings: Any, cells: Mapping[str, Score], declared: DeclaredScore | None
) -> Column:
    lower = None if declared is None else declared.info.lower_is_better
    ranks = {}
    if lower is not None:
        ranks = dict(zip(cells, rank(list(cells.values()), lower), strict=True))
    return Column(
        score=score,
        settings=settings,
        lower=lower,
        cells=cells,
        ranks=ranks,
        detail=declared is not None and declared.info.detail,
    )
