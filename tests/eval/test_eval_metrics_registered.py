"""Metrics of somebody else, through the door of the built-in ones."""

import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from small_records import make_record
from tiny_extractor import TinyExtractor

from genlab.cli import main
from genlab.data.writing.writers import write_npz
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.extractors.base import EXTRACTORS
from genlab.eval.leaderboard.board import Entry, arrange
from genlab.eval.leaderboard.page import render_page
from genlab.eval.leaderboard.records import Record, record_id, write_record
from genlab.eval.leaderboard.tables import to_csv, to_markdown
from genlab.eval.metrics.base import FeatureMetric, FeatureSet, LikelihoodMetric, Need, ScoreInfo
from genlab.eval.metrics.registry import METRICS, declared_scores
from genlab.eval.metrics.scores import _classes, scores_in_source
from genlab.eval.protocol import build_metrics, check_names
from genlab.eval.subject import Subject
from genlab.registry import PluginWarning

THEIRS = """
import torch
from dataclasses import dataclass
from genlab.eval.metrics.base import FeatureMetric, Need, ScoreInfo

@dataclass(frozen=True, kw_only=True)
class Spread(FeatureMetric):
    scores = (ScoreInfo("spread", lower_is_better=False),)
    needs = (Need("rows", "features"),)

    def __call__(self, samples, reference):
        return {"spread": float(samples.rows["features"].std(0).mean())}
"""


@dataclass(frozen=True, kw_only=True)
class MeanDistance(FeatureMetric):
    """How far apart the means are."""

    scores: ClassVar[tuple[ScoreInfo, ...]] = (
        ScoreInfo("mean-distance", lower_is_better=True, official_name="mid"),
        ScoreInfo("mean-distance_max", lower_is_better=None, official_name="mid_max", detail=True),
    )
    needs = (Need("moments", "features"),)
    reference_needs = (Need("moments", "features"),)

    p: float = 2.0

    def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
        assert reference is not None
        difference = samples.moments["features"].mean - reference.moments["features"].mean
        return {
            "mean-distance": float(difference.norm(self.p)),
            "mean-distance_max": float(difference.abs().max()),
        }


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(METRICS, "_loaded", dict(METRICS._loaded))
    monkeypatch.setattr(EXTRACTORS, "_loaded", dict(EXTRACTORS._loaded))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, None)
    return tmp_path / "real.npz"


def install(folder: Path, source: str, *entries: str) -> Path:
    """Put a package with entry points into a folder, as pip would."""
    (folder / "theirs.py").write_text(source)
    metadata = folder / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[genlab.metrics]\n" + "\n".join(entries))
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which packages are found, for a registry that has not looked for any yet."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    monkeypatch.setattr(METRICS, "_scanned", False)
    yield folder
    _classes.cache_clear()
    sys.modules.pop("theirs", None)


def entry_of(record: Record) -> Entry:
    return Entry(key=record_id(record), record=record)


def spreads(metric: str = "spread") -> list[Record]:
    """Two records with the score ``spread`` of a metric."""
    metrics: dict[str, Any] = {metric: {}}
    return [
        make_record("low", metrics=metrics, spread=1.0),
        make_record("high", metrics=metrics, spread=2.0),
    ]


@pytest.mark.parametrize(
    ("lower", "arrow", "order"), [(True, "↓", ["low", "high"]), (False, "↑", ["high", "low"])]
)
def test_it_is_ranked_the_way_it_declares(
    lower: bool, arrow: str, order: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    @METRICS.register("theirs")
    class Theirs(MeanDistance):
        scores = (ScoreInfo("spread", lower_is_better=lower),)

    sections = arrange([entry_of(record) for record in spreads("theirs")])
    rows = csv.DictReader(io.StringIO(to_csv(sections)))
    assert [(row["model"], row["rank"]) for row in rows] == [(order[0], "1"), (order[1], "2")]
    lines = to_markdown(sections).splitlines()
    assert f"spread\\[cnn\\] {arrow}" in lines[4]
    assert [line.split(" | ")[:2] for line in lines[6:]] == [["| 1", order[0]], ["| 2", order[1]]]
    html = render_page(sections)
    assert re.findall(r'<td class="rank" rowspan="2">([^<]*)</td>', html) == ["1", "2"]
    assert re.findall(r'class="model" data-sort="(\w+)"', html) == order

    for record in spreads("theirs"):
        write_record(tmp_path, record)
    assert main(["leaderboard", "show", "--dir", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert f"spread {arrow}" in out
    assert re.findall(r"^ ?(\d) +(\w+) ", out, re.MULTILINE) == [("1", order[0]), ("2", order[1])]


def test_it_is_not_ranked_where_neither_way_is_better() -> None:
    @METRICS.register("theirs")
    class Theirs(MeanDistance):
        scores = (ScoreInfo("spread", lower_is_better=None),)

    (section,) = arrange([entry_of(record) for record in spreads("theirs")])
    (column,) = section.groups[0].columns
    assert (column.lower, column.ranks, len(column.cells)) == (None, {}, 2)


def test_an_installed_one_is_ranked_and_not_imported(site: Path, tmp_path: Path) -> None:
    """In a process of its own, as users call it; torch would take most of the time."""
    install(site, THEIRS, "spread = theirs:Spread")
    for record in spreads():
        write_record(tmp_path / "board", record)
    code = (
        "import sys; from genlab.cli import main; "
        f"main(['leaderboard', 'csv', '--dir', {str(tmp_path / 'board')!r}]); "
        "print('theirs' in sys.modules, 'torch' in sys.modules)"
    )
    path = os.pathsep.join([str(site), *sys.path])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    *table, imported = result.stdout.splitlines()
    assert imported == "False False", result.stderr
    ranks = {row["model"]: row["rank"] for row in csv.DictReader(table)}
    assert ranks == {"low": "2", "high": "1"}


def test_it_stands_behind_ours_and_its_settings_alone_count() -> None:
    METRICS.register("a-metric")(MeanDistance)
    scores: Any = {"mean-distance": 1.0, "mean-distance_max": 2.0, "bpd": 2.0, "theirs": 1.0}
    one, two = (
        make_record(model, metrics={"a-metric": {"p": 2}, "bpd": {}, "fd": settings}, **scores)
        for model, settings in (("one", {}), ("two", {"changed": True}))
    )
    (group,) = arrange([entry_of(one), entry_of(two)])[0].groups
    names = [column.score for column in group.columns]
    assert names[:2] == ["bpd[cnn]", "mean-distance[cnn]"]
    assert names[2:] == ["theirs[cnn]", "theirs[cnn]"]  # nobody knows what counts: all settings do
    assert [column.score for column in group.details] == ["mean-distance_max[cnn]"]


def test_it_scores_and_its_official_name_belongs_to_inception(real: Path) -> None:
    @EXTRACTORS.register("official")
    def official(weights: Path | None) -> TinyExtractor:
        extractor = TinyExtractor()
        extractor.official = True
        return extractor

    METRICS.register("theirs")(MeanDistance)
    config = EvalConfig(extractor="tiny", metrics=[{"name": "theirs", "p": 1}], reference=str(real))
    subject = Subject.of_folder(real)
    record = evaluate(subject, config)
    assert record is not None
    assert {name: score.value for name, score in record.scores.items()} == {
        "mean-distance[tiny]": pytest.approx(0, abs=1e-6),
        "mean-distance_max[tiny]": pytest.approx(0, abs=1e-6),
    }
    assert record.protocol["metrics"] == {"theirs": {"p": 1.0}}

    record = evaluate(subject, replace(config, extractor="official", metrics=["mid"]))
    assert record is not None
    assert list(record.scores) == ["mid", "mid_max"]
    assert [c.lower for c in arrange([entry_of(record)])[0].groups[0].columns] == [True]
    with pytest.raises(ConfigError, match=r"ask for theirs, .* called mean-distance\[tiny\]"):
        check_names(["mid"], TinyExtractor())


def test_declarations_read_from_the_source_are_those_of_the_classes() -> None:
    for name in METRICS.in_order():
        module, _, attribute = METRICS._entries[name].value.partition(":")
        assert scores_in_source(module, attribute) == METRICS[name].scores


@pytest.mark.parametrize(
    "scores",
    [
        'tuple(ScoreInfo(name, lower_is_better=True) for name in ("spread",))',
        '(info("spread", lower_is_better=True),)',
        "(ScoreInfo(NAME, lower_is_better=True),)",
    ],
)
def test_declarations_that_are_not_plain_are_asked_of_the_class(site: Path, scores: str) -> None:
    source = THEIRS.replace('(ScoreInfo("spread", lower_is_better=False),)', scores)
    source = source.replace("@dataclass", 'NAME, info = "spread", ScoreInfo\n@dataclass')
    install(site, source, "spread = theirs:Spread")
    assert declared_scores()["spread"] == ("spread", ScoreInfo("spread", lower_is_better=True))


def test_inherited_declarations_count(site: Path) -> None:
    install(site, THEIRS + "\nclass Wider(Spread):\n    pass\n", "wider = theirs:Wider")
    assert declared_scores()["spread"].metric == "wider"


@pytest.mark.parametrize(
    ("source", "entry", "sentence"),
    [
        ("import not_there", "theirs:Spread", "cannot be loaded: .*No module named 'not_there'"),
        ("", "theirs:Spread", "cannot be loaded: .*no attribute 'Spread'"),
        ("", "not_there.either:Spread", "cannot be imported: No module named 'not_there'"),
        ("class :", "theirs:Spread", "cannot be imported: invalid syntax"),
        ("class Spread:\n    pass", "theirs:Spread", "declares no scores"),
        ("class Spread:\n    scores = ()", "theirs:Spread", "declares no scores"),
        ("class Spread:\n    scores = 'spread'", "theirs:Spread", "declares no scores"),
        (THEIRS.replace('"spread"', '"fd"'), "theirs:Spread",
         "the score 'fd' is declared twice, by the metric 'fd' and by 'mine'"),
        (THEIRS.replace('"spread"', '"is"'), "theirs:Spread",
         "the score 'is' is declared twice, by the metric 'cs' and by 'mine'"),
        (THEIRS.replace('"spread"', '"spread[x]"'), "theirs:Spread",
         r"printable text without brackets, got 'spread\[x\]'"),
    ],
)  # fmt: skip
def test_wrong_declarations_are_named(site: Path, source: str, entry: str, sentence: str) -> None:
    """They stop whoever asks for the metric, and nobody else."""
    install(site, source, f"mine = {entry}")
    if sentence.startswith(("cannot", "declares")):
        sentence = f"^the metric 'mine' of the package theirs .*{sentence}"
    with pytest.raises(ConfigError, match=sentence):
        build_metrics(["fd", "mine"])
    with pytest.warns(PluginWarning, match=f"{sentence}.*; it is left out"):
        assert list(build_metrics(["fd"])) == ["fd"]
    record = make_record("a", fd=1.0, spread=1.0)
    with pytest.warns(PluginWarning, match=sentence):
        (section,) = arrange([entry_of(record)])
    lower = {column.score: column.lower for column in section.groups[0].columns}
    assert lower == {"fd[cnn]": True, "spread[cnn]": None}
    with pytest.raises(ConfigError, match=sentence):
        arrange([entry_of(make_record("a", metrics={"mine": {}}, spread=1.0))])


def test_a_metric_is_of_one_of_the_two_kinds() -> None:
    @METRICS.register("neither")  # type: ignore[arg-type]
    class Neither:
        scores = (ScoreInfo("neither", lower_is_better=True),)

    @METRICS.register("needless")
    class Needless(FeatureMetric):
        scores = (ScoreInfo("needless", lower_is_better=True),)

        def __call__(self, samples: FeatureSet, reference: FeatureSet | None) -> dict[str, float]:
            raise AssertionError

    with pytest.raises(ConfigError, match="'neither' is of neither kind; derive its class"):
        build_metrics(["neither"])
    with pytest.raises(ConfigError, match="'needless' declares no needs"):
        build_metrics(["needless"])


def test_a_score_that_is_not_declared_is_refused(real: Path) -> None:
    @METRICS.register("mine")
    class Mine(MeanDistance):
        scores = (ScoreInfo("mine", lower_is_better=True),)

    config = EvalConfig(extractor="tiny", metrics=["mine"], reference=str(real))
    with pytest.raises(
        EvaluationError,
        match="mine: the metric gives the score 'mean-distance' and declares only mine; add it to",
    ):
        evaluate(Subject.of_folder(real), config)


def test_a_likelihood_has_no_extractor_in_its_name() -> None:
    class Worst(LikelihoodMetric):
        scores = (ScoreInfo("worst", lower_is_better=True),)

        def __call__(self, bits: object) -> dict[str, float]:
            raise AssertionError

    assert Worst().score_name("worst", TinyExtractor()) == "worst"
