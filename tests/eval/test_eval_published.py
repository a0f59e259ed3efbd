"""The published scores: sound, sourced, digit for digit, and never ranked with ours."""

import re
from dataclasses import replace
from importlib.resources import files

from small_records import make_record

from genlab.eval.leaderboard.board import Entry, arrange
from genlab.eval.leaderboard.published import published
from genlab.eval.leaderboard.records import record_id
from genlab.eval.leaderboard.wording import score_text, source_url
from genlab.eval.metrics.registry import declared_scores


def test_every_row_says_where_it_stands_and_how_it_was_made() -> None:
    assert len(published()) >= 35
    for record in published():
        assert re.search(r"arXiv:\d{4}\.\d{5}", record.source), record
        assert source_url(record.source).startswith("https://arxiv.org/abs/")
        assert list(record.protocol) == ["described"]
        assert record.protocol["described"]
        assert set(record.scores) <= set(declared_scores())


def test_no_row_stands_twice() -> None:
    names = [(record.dataset, record.model) for record in published()]
    assert len(set(names)) == len(names)


def test_digits_are_those_of_the_table() -> None:
    """The text of the file against what is shown: YAML and formatting lose trailing zeros."""
    text = files("genlab.eval.leaderboard").joinpath("published.yaml").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if "scores: {" in line]
    assert len(rows) == len(published())
    for line, record in zip(rows, published(), strict=True):
        written = dict(
            re.findall(r"([a-z]+): ([\d.]+)", line[line.index("scores: {") :].split("}")[0])
        )
        for name, score in record.scores.items():
            shown = score_text(score, published=True)
            assert float(shown) == float(written[name])
            assert shown.startswith(written[name])


def test_some_rows_that_everybody_knows() -> None:
    table = {(record.dataset, record.model): record for record in published()}
    dit = table["imagenet-256", "DiT-XL/2"]
    assert {name: score.value for name, score in dit.scores.items()} == {
        "fid": 2.27, "sfid": 4.60, "is": 278.24, "precision": 0.83, "recall": 0.57,
    }  # fmt: skip
    edm = table["cifar10", "EDM VP, class-conditional"]
    assert (edm.scores["fid"].value, edm.cost["nfe"]) == (1.79, 35)


def test_they_stand_beside_ours_and_are_not_ranked() -> None:
    ours = make_record("ours", dataset="cifar10", fid=9.0)
    ours = replace(ours, scores={"fid": ours.scores["fid[cnn]"]})
    section = arrange([Entry(key=record_id(ours), record=ours)], published())[0]
    (group,) = section.groups
    assert [str(place) for place in group.columns[0].ranks.values()] == ["1"]
    beside = section.beside(group)
    assert "EDM VP, class-conditional" in {record.model for record in beside}
    alone = section.alone()
    assert {"PixelCNN++", "PixelCNN"} <= {record.model for record in alone}
    assert len(beside) + len(alone) == len(section.published)
