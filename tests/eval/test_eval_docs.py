"""The examples of docs/evaluation.md do what it says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genlab.data.writing.writers import write_npz
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.extractors.base import EXTRACTORS
from genlab.eval.metrics.base import METRICS
from genlab.eval.subject import Subject

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's Python defines; what the test registers is gone after it."""
    monkeypatch.setattr(METRICS, "_loaded", dict(METRICS._loaded))
    monkeypatch.setattr(EXTRACTORS, "_loaded", dict(EXTRACTORS._loaded))
    names: dict[str, Any] = {"__name__": __name__}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        exec(code, names)  # noqa: S102 - our own page
    return names


def test_a_metric_and_an_extractor_of_ones_own(examples: dict[str, Any], tmp_path: Path) -> None:
    METRICS.register("mean-distance")(examples["MeanDistance"])
    EXTRACTORS.register("mean-colour")(examples["MeanColour"])
    for name, value in (("black", 0), ("white", 255)):
        pixels = np.full((4, 8, 8, 3), value, np.uint8)
        write_npz(tmp_path / f"{name}.npz", iter(pixels), pixels.shape, None)
    config = EvalConfig(metrics=[{"name": "mean-distance", "p": 1}], extractor="mean-colour",
                        reference=str(tmp_path / "white.npz"))  # fmt: skip
    record = evaluate(Subject.of_folder(tmp_path / "black.npz"), config)
    assert record is not None
    assert {name: score.value for name, score in record.scores.items()} == {
        "mean-distance[mean-colour]": pytest.approx(3)
    }
    assert record.protocol["extractor"]["name"] == "mean-colour"


def test_a_metric_of_likelihoods(examples: dict[str, Any]) -> None:
    METRICS.register("worst-bits")(examples["WorstBits"])
    assert METRICS.build("worst-bits")(torch.tensor([2.5, 3.0])) == {"worst-bits": 3.0}
