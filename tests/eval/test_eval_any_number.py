"""The leaderboard draws any finite number, ties what is equal, and times what was computed."""

import json
import math
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from small_records import make_record

from genlab.errors import EvaluationError
from genlab.eval.leaderboard.board import Entry, arrange, read_folder
from genlab.eval.leaderboard.page import render_page
from genlab.eval.leaderboard.ranking import rank
from genlab.eval.leaderboard.records import Record, Score, from_json, record_id, to_json
from genlab.eval.leaderboard.tables import to_csv, to_markdown
from genlab.eval.leaderboard.terminal import print_sections
from genlab.eval.leaderboard.wording import entry_names, score_text

LARGEST, SMALLEST = 1.7976931348623157e308, 5e-324
EXTREMES = [
    (LARGEST, -LARGEST), (LARGEST, LARGEST), (1e17, 1e17 + 16), (1e-200, 1e-200),
    (SMALLEST, LARGEST), (SMALLEST, SMALLEST), (0.0, SMALLEST), (-SMALLEST, SMALLEST),
    (1e15, 1e15 + 1), (-1e17, 16 - 1e17), (0.0, 0.0), (2.1, 2.2), (1e-310, 1e-308),
]  # fmt: skip


def entries(*records: Record) -> list[Entry]:
    return [Entry(key=record_id(record), record=record) for record in records]


@pytest.mark.parametrize("pair", EXTREMES, ids=str)
def test_every_view_shows_any_finite_number(
    pair: tuple[float, float], capsys: pytest.CaptureFixture[str]
) -> None:
    sections = arrange(entries(make_record("a", fd=pair[0]), make_record("b", fd=pair[1])))
    print_sections(sections, 80)
    print_sections(sections, None)
    for text in (render_page(sections), to_markdown(sections), to_csv(sections)):
        assert len(text) > 100
    assert max(map(len, capsys.readouterr().out.splitlines())) < 400


@pytest.mark.parametrize("low", [-LARGEST, -1e17, 0.0, 1.0])
def test_an_interval_of_any_width(low: float) -> None:
    for score in (
        Score(value=LARGEST / 2, low=low, high=LARGEST),
        Score(value=low, low=low, high=low),
        Score(value=low, low=low, high=math.nextafter(low, math.inf)),
    ):
        assert 0 < len(score_text(score)) < 40


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script with")
def test_the_chart_s_scales_end_and_stay_inside() -> None:
    script = files("genlab.eval.leaderboard").joinpath("templates", "leaderboard.js").read_text()
    part = script[script.index("  function makeScale(") : script.index("  function drawChart(")]
    test = (
        f"const makeScale = new Function({json.dumps(part + ';return makeScale')})();"
        f"const found = {json.dumps(EXTREMES)}.flatMap((v) => [6, 20].map((ratio) => {{"
        "const made = makeScale(v, 50, 500, ratio);"
        "return [v.map(made.scale), made.ticks.map(([t, s]) => [made.scale(t), s.length])]; }));"
        "console.log(JSON.stringify(found));"
    )
    done = subprocess.run(["node", "-e", test], capture_output=True, text=True, timeout=60)
    for places, ticks in json.loads(done.stdout):
        assert all(50 - 1e-6 <= place <= 500 + 1e-6 for place in places)
        assert 2 <= len(ticks) <= 13
        assert all(50 - 1e-6 <= place <= 500 + 1e-6 and size < 12 for place, size in ticks)


@pytest.mark.parametrize("name", ["board-freeze", "board-tofixed"])
def test_records_that_froze_the_page_are_drawn(shared: Path, name: str) -> None:
    found, broken = read_folder(shared / "cases" / "records" / name)
    assert not broken
    assert "<svg" in render_page(arrange(found)) or len(found) == 2


def test_a_mean_that_cannot_be_added_up_is_refused() -> None:
    plain = to_json(make_record("a", fd=1.0))
    plain["scores"]["fd[cnn]"]["values"] = [1e308, 1e308]
    with pytest.raises(EvaluationError, match="the mean of its values is another number"):
        from_json(plain)
    plain["scores"]["fd[cnn]"]["value"] = 1e308
    assert from_json(plain).scores["fd[cnn]"].values == (1e308, 1e308)


def test_scores_that_differ_by_rounding_alone_tie() -> None:
    one, same, other = (Score(value=v) for v in (2.0, 2.0 * (1 + 1e-13), 2.001))
    assert [str(r) for r in rank([one, same, other], lower=True)] == ["=1", "=1", "3"]
    assert [str(r) for r in rank([one, same, other], lower=False)] == ["=2", "=2", "1"]


def test_records_of_one_model_say_whose_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = entries(make_record("edm", fd=2.0, notes="mine"), make_record("edm", fd=2.0))
    theirs = Entry(key=theirs.key, record=theirs.record, origin="bundled")
    sections = arrange([ours, theirs, *entries(make_record("dit", fd=3.0))])
    names = entry_names(sections[0].groups[0])
    assert names[theirs.key] == f"edm (bundled, {theirs.key[:6]})"
    assert ours.key[:6] in names[ours.key]
    assert "dit" in names.values()
    print_sections(sections, None)
    shown = capsys.readouterr().out
    assert all(name in text for name in names.values() for text in (shown, render_page(sections)))


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_number_is_cut_in_a_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("fd", "kd", "precision", "recall", "density", "coverage")
    scores: dict[str, Any] = dict.fromkeys(names, 1234.5)
    record = make_record("a-model-of-a-rather-long-name", nfe=1000, seconds=0.0123, **scores)
    print_sections(arrange(entries(record)), width)
    out = capsys.readouterr().out
    assert "s/image" in out
    assert "0.0123" in out
    assert "…" not in out
