"""Grouping by protocol, ranks with ties, Pareto fronts, and what differs."""

import csv
import io
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_records import make_record

from genlab.errors import EvaluationError, UnknownNameError
from genlab.eval.leaderboard.board import Entry, Group, Section, arrange, read_folder, select
from genlab.eval.leaderboard.facts import differences
from genlab.eval.leaderboard.ranking import pareto_front, plain_name, rank
from genlab.eval.leaderboard.records import Record, Score, record_id, write_record
from genlab.eval.leaderboard.tables import to_csv, to_markdown
from genlab.eval.leaderboard.wording import column_notes, score_text
from genlab.eval.metrics.registry import METRICS, declared_scores, official_names


def entries_of(*records: Record) -> list[Entry]:
    return [Entry(key=record_id(record), record=record) for record in records]


def sections_of(*records: Record) -> list[Section]:
    return arrange(entries_of(*records))


def models(group: Group) -> list[str]:
    return [entry.record.model for entry in group.entries]


def places(group: Group, score: str) -> dict[str, str]:
    (column,) = [column for column in group.columns if column.score == score]
    names = {entry.key: entry.record.model for entry in group.entries}
    return {names[key]: str(place) for key, place in column.ranks.items()}


def lower_is_better(score: str) -> bool | None:
    found = declared_scores().get(plain_name(score)[0])
    return None if found is None else found.info.lower_is_better


def test_every_metric_and_every_official_name_has_a_direction() -> None:
    ranked = [s for s in declared_scores().values() if s.info.lower_is_better is not None]
    # The numbers of nearest are neither good nor bad.
    assert {score.metric for score in ranked} == set(METRICS) - {"nearest"}
    for official, score in official_names().items():
        assert score == declared_scores()[official] == declared_scores()[score.info.name]


def test_directions() -> None:
    assert lower_is_better("fid") is True
    assert lower_is_better("fd[cnn-fmnist]") is True
    assert lower_is_better("recall[dinov2-vitl14]") is False
    assert lower_is_better("is_std") is None
    assert lower_is_better("theirs") is None


def test_ranks_follow_the_direction() -> None:
    (section,) = sections_of(
        make_record("a", fd=3.0, precision=0.5),
        make_record("b", fd=1.0, precision=0.7),
        make_record("c", fd=2.0, precision=0.6),
    )
    (group,) = section.groups
    assert models(group) == ["b", "c", "a"]
    assert places(group, "fd[cnn]") == {"a": "3", "b": "1", "c": "2"}
    assert places(group, "precision[cnn]") == {"a": "3", "b": "1", "c": "2"}


def test_overlapping_intervals_tie() -> None:
    """A overlaps B and B overlaps C, but A beats C."""
    scores = [(2.0, 1.0, 3.0), (3.5, 2.5, 4.5), (5.0, 4.0, 6.0), (9.0, 8.0, 10.0)]
    (section,) = sections_of(*(make_record(f"m{i}", fd=v) for i, v in enumerate(scores)))
    assert places(section.groups[0], "fd[cnn]") == {"m0": "=1", "m1": "=1", "m2": "=2", "m3": "4"}


def test_touching_intervals_tie_and_single_runs_are_points() -> None:
    one, two, three = Score(value=1.0), Score(value=1.5, low=1.0, high=2.0), Score(value=2.5)
    assert [str(r) for r in rank([one, two, three], lower=True)] == ["=1", "=1", "3"]
    assert [str(r) for r in rank([one, one], lower=True)] == ["=1", "=1"]
    assert rank([], lower=True) == []


triples = st.tuples(*[st.integers(-9, 9)] * 3).map(sorted)


@given(st.lists(triples, max_size=8), st.booleans())
def test_ranks_are_what_the_definition_says(found: list[list[int]], lower: bool) -> None:
    scores = [Score(value=float(v), low=float(low), high=float(high)) for low, v, high in found]
    ends = [(low, high) if lower else (-high, -low) for low, _, high in found]
    for (low, high), place in zip(ends, rank(scores, lower), strict=True):
        better = sum(other_high < low for _, other_high in ends)
        overlapping = sum(o_low <= high and o_high >= low for o_low, o_high in ends)
        assert place.place == better + 1
        assert place.tied == (overlapping > 1)  # one is the score itself


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8), st.booleans())
def test_the_pareto_front_is_what_no_other_beats(
    given_points: list[tuple[int, int]], lower: bool
) -> None:
    points = [(float(cost), float(score)) for cost, score in given_points]
    sign = 1 if lower else -1

    def beaten(i: int) -> bool:
        cost, score = points[i]
        return any(
            c <= cost and sign * s <= sign * score and (c, s) != (cost, score) for c, s in points
        )

    front = pareto_front(points, lower)
    assert sorted(front) == [i for i in range(len(points)) if not beaten(i)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_the_front_leaves_out_what_has_no_cost() -> None:
    (section,) = sections_of(
        make_record("cheap", fd=4.0, nfe=9),
        make_record("dear", fd=2.0, nfe=35),
        make_record("beaten", fd=5.0, nfe=18),
        make_record("uncounted", fd=1.0),
    )
    (group,) = section.groups
    names = {entry.key: entry.record.model for entry in group.entries}
    assert [names[key] for key in group.front(group.columns[0], "nfe")] == ["cheap", "dear"]
    assert group.front(group.columns[0], "seconds_per_image") == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"count": 5000}, "count"),
        ({"extractor": "other"}, "extractor.name"),
    ],
)
def test_other_protocols_are_not_ranked_together(changes: dict[str, Any], key: str) -> None:
    other = make_record("b", fd=1.0, **changes)
    (section,) = sections_of(make_record("a", fd=2.0), make_record("c", fd=3.0), other)
    assert [models(group) for group in section.groups] == [["a", "c"], ["b"]]
    assert set(section.differing) == {key}


def test_other_data_sets_are_other_sections() -> None:
    found = sections_of(make_record("a", fd=2.0), make_record("b", dataset="cifar10", fd=2.0))
    assert [section.dataset for section in found] == ["cifar10", "fmnist"]


def test_a_protocols_name_does_not_count() -> None:
    """It abbreviates the rest: three draws of edm-50k and one draw with its settings compare."""
    (section,) = sections_of(make_record("a", fd=2.0, name=None), make_record("b", fd=1.0))
    (group,) = section.groups
    assert group.names == ("custom", "quick")
    assert places(group, "fd[cnn]") == {"a": "2", "b": "1"}


def test_settings_of_other_metrics_do_not_count() -> None:
    (section,) = sections_of(
        make_record("a", fd=2.0, precision=0.5),
        make_record("b", fd=1.0, metrics={"fd": {}}),
        make_record("c", fd=3.0, precision=0.9, metrics={"fd": {}, "pr": {"k": 5}}),
    )
    (group,) = section.groups
    assert places(group, "fd[cnn]") == {"a": "2", "b": "1", "c": "3"}
    columns = [c for c in group.columns if c.score == "precision[cnn]"]
    assert [len(column.cells) for column in columns] == [1, 1]  # k = 3 and k = 5: not comparable
    assert column_notes(group) == ["", "k=3", "k=5"]


def test_scores_nobody_knows_are_shown_and_not_ranked() -> None:
    (section,) = sections_of(make_record("a", theirs=2.0, fd=1.0), make_record("b", theirs=1.0))
    columns = {column.score: column for column in section.groups[0].columns}
    assert list(columns) == ["fd[cnn]", "theirs[cnn]"]
    assert columns["theirs[cnn]"].lower is None
    assert not columns["theirs[cnn]"].ranks
    assert len(columns["theirs[cnn]"].cells) == 2


def test_details_stand_in_csv_only() -> None:
    (section,) = sections_of(make_record("mine", fd=2.0, cs=6.0, cs_std=0.1))
    (group,) = section.groups
    assert [column.score for column in group.columns] == ["fd[cnn]", "cs[cnn]"]
    assert "cs_std" not in to_markdown([section])
    assert "cs_std[cnn]" in to_csv([section])
    (alone,) = sections_of(make_record("mine", cs_std=0.1))[0].groups
    assert [column.score for column in alone.columns] == ["cs_std[cnn]"]


def test_the_order_of_files_does_not_matter() -> None:
    records = [make_record(f"m{i}", fd=float(i % 2)) for i in range(3)]
    boards = {repr(sections_of(*order)[0].groups[0].entries) for order in permutations(records)}
    assert len(boards) == 1


def test_select() -> None:
    board = entries_of(
        make_record("a", fd=1.0, precision=0.5),
        make_record("b", dataset="cifar10", fd=1.0),
        make_record("c", precision=0.5, name=None, count=10),
    )
    assert [e.record.model for e in select(board, dataset="fmnist")] == ["a", "c"]
    (only, _) = select(board, score="fd")
    assert list(only.record.scores) == ["fd[cnn]"]
    assert only.key == board[0].key
    assert [e.record.model for e in select(board, score="precision[cnn]")] == ["a", "c"]
    assert [e.record.model for e in select(board, protocol="custom")] == ["c"]
    (section,) = arrange(select(board, dataset="fmnist"))
    key = section.groups[1].key
    assert [e.record.model for e in select(board, protocol=key[:5])] == models(section.groups[1])


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"dataset": "fmnits"}, "data set 'fmnits'; did you mean 'fmnist'"),
        ({"score": "fid"}, r"score 'fid'; .*known: fd\[cnn\]"),
        ({"protocol": "quack"}, "protocol 'quack'; did you mean 'quick'"),
    ],
)
def test_choosing_what_is_not_there(choice: dict[str, str], sentence: str) -> None:
    with pytest.raises(UnknownNameError, match=sentence):
        select(entries_of(make_record("a", fd=1.0)), **choice)


def test_differences_name_dotted_keys_and_what_is_not_said() -> None:
    one = {"extractor": {"name": "a", "resize": "none"}, "count": 3, "labels": ["x"]}
    two = {"extractor": {"name": "b", "resize": "none"}, "labels": ["x"], "seeds": None}
    assert differences([one, two]) == {
        "extractor.name": ("a", "b"),
        "count": (3, "not said"),
        "seeds": ("not said", None),
    }
    assert differences([one, one]) == differences([]) == differences([{}, {}]) == {}


def test_a_folder_is_read_whole_and_what_is_broken_is_reported(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record("a", fd=1.0))
    (tmp_path / "copy.json").write_bytes(path.read_bytes())
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "notes.txt").write_text("no record")
    entries, broken = read_folder(tmp_path)
    assert [entry.record.model for entry in entries] == ["a"]
    assert len(broken) == 1
    assert "broken.json" in str(broken[0])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"there is no folder .*none"):
        read_folder(tmp_path / "none")


def test_scores_show_the_digits_that_they_deserve() -> None:
    assert score_text(Score(value=2.5512, low=2.42, high=2.68)) == "2.55 ± 0.13"
    assert score_text(Score(value=4.0, low=3.9, high=4.1)) == "4.00 ± 0.10"
    assert score_text(Score(value=278.24)) == "278.2"
    assert score_text(Score(value=278.24), published=True) == "278.24"
    assert score_text(Score(value=1.7), published=True) == "1.70"
    assert score_text(Score(value=0.00123, low=0.00122, high=0.00124)) == "1.230e-03 ± 1.0e-05"
    assert score_text(Score(value=3.0, low=3.0, high=3.0)) == "3.000 ± 0"


def test_csv_has_all_digits_and_no_formulas() -> None:
    text = to_csv(sections_of(make_record("=cmd()", fd=(1 / 3, 0.3, 0.4), nfe=9)))
    (values,) = csv.DictReader(io.StringIO(text))
    assert float(values["value"]) == 1 / 3
    assert values["model"] == "'=cmd()"
    assert (values["rank"], values["tied"], values["nfe"]) == ("1", "0", "9")


def test_markdown_escapes_what_would_break_a_table() -> None:
    text = to_markdown(sections_of(make_record("a|b<script>", fd=1.0), make_record("c", fd=2.0)))
    assert r"| 1 | a\|b&lt;script&gt; | **1.000** |" in text
    assert r"fd\[cnn\] ↓" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in lines} == {6}


def test_records_from_files_of_other_writers(tmp_path: Path) -> None:
    """Numbers without a point, no optional key: what a person would write by hand."""
    plain = {
        "schema": 1,
        "model": "theirs",
        "dataset": "fmnist",
        "scores": {"fid": {"value": 3}},
        "protocol": {},
    }
    (tmp_path / "theirs.json").write_text(json.dumps(plain))
    entries, broken = read_folder(tmp_path)
    assert not broken
    (section,) = arrange(entries)
    assert section.groups[0].names == ("custom",)
    assert places(section.groups[0], "fid") == {"theirs": "1"}
