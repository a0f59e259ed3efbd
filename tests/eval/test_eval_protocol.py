"""Protocols: their names, what takes a name off, and the interval of repeats."""

from dataclasses import replace

import pytest
from tiny_extractor import TinyExtractor

from genlab import config as configs
from genlab.errors import ConfigError, UnknownNameError
from genlab.eval.config import EvalConfig
from genlab.eval.protocol import (
    build_metrics,
    check_names,
    frozen_name,
    protocol_metadata,
    summarise,
)


@pytest.mark.parametrize("name", ["adm-50k", "edm-50k", "quick-5k", "offline-2k"])
def test_frozen_protocols_have_names(name: str) -> None:
    config = configs.load(EvalConfig, name, "eval")
    assert frozen_name(config) == name
    assert build_metrics(config.metrics)
    sampled = replace(config, sampler={"solver": {"name": "euler"}}, first_seed=7, dtype="bfloat16")
    assert frozen_name(sampled) == name  # how a model is sampled is its own business


@pytest.mark.parametrize(
    "change", ["count=1999", "labels=random", "repeats=2", "extractor=tiny", "metrics=[fd]"]
)
def test_a_changed_protocol_loses_its_name(change: str) -> None:
    assert frozen_name(configs.load(EvalConfig, "offline-2k", "eval", [change])) is None


def test_metrics_go_by_plain_and_official_names() -> None:
    assert list(build_metrics(["fid", {"name": "is", "splits": 5}, "prdc"])) == [
        "fd",
        "cs",
        "pr",
        "dc",
    ]
    assert build_metrics(["fid"])["fd"] == build_metrics(["fd"])["fd"]


def test_wrong_metrics_are_named() -> None:
    with pytest.raises(UnknownNameError, match="there is no metric 'fdi'; did you mean 'fd"):
        build_metrics(["fdi"])
    with pytest.raises(ConfigError, match="no setting 'split'; did you mean 'splits'"):
        build_metrics([{"name": "cs", "split": 5}])
    with pytest.raises(ConfigError, match="'fd' stands twice"):
        build_metrics(["fd", "fid"])


def test_official_names_belong_to_inception() -> None:
    with pytest.raises(ConfigError, match=r"ask for fd, which is then called fd\[tiny\]"):
        check_names(["fid"], TinyExtractor())
    check_names(["fd", "prdc"], TinyExtractor())


def test_the_card_holds_what_a_score_depends_on() -> None:
    config = EvalConfig(metrics=["cs"], extractor="tiny")
    metrics = build_metrics(config.metrics)
    metadata = protocol_metadata(config, TinyExtractor(), metrics, {"name": "real"}, 12, "random")
    assert metadata["name"] is None
    assert metadata["extractor"]["weights_sha256"] == "0" * 64
    assert metadata["pixel_rule"] == "floor(clip(x * 127.5 + 128, 0, 255))"
    assert (metadata["count"], metadata["labels"]) == (12, "random")
    assert metadata["reference"] == {"name": "real"}
    assert "splits" in metadata["metrics"]["cs"]


def test_repeats_give_mean_and_interval() -> None:
    score = summarise([1.0, 2.0, 3.0])
    # Student's t with 2 degrees of freedom, deviation 1: 4.303 / sqrt(3).
    assert (score.value, score.values) == (2.0, (1.0, 2.0, 3.0))
    assert score.low == pytest.approx(2 - 4.303 / 3**0.5)
    assert score.high == pytest.approx(2 + 4.303 / 3**0.5)
    alone = summarise([1.5])
    assert (alone.value, alone.low, alone.high) == (1.5, None, None)
