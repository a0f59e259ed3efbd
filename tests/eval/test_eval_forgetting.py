"""What is left of a forgotten class, measured on a bundled model of real images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import genlab
from genlab.data.dataset import ImageDataset
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.extractors.base import build_extractor
from genlab.eval.forgetting import (
    Both,
    ForgettingCheck,
    measure_forgetting,
    probe,
    relearn_rows,
)
from genlab.finetuning.class_tables.rebuilding import rebuild

BAG = 8
FEW = {"schedule": {"num_steps": 8}}
CHECK = ForgettingCheck(samples=3, relearn_images=4, relearn_steps=3)


@pytest.fixture(scope="module")
def base() -> Any:
    return genlab.load("dit-fmnist-s")


@pytest.fixture(scope="module")
def forgetful(base: Any) -> Any:
    """The base whose row of bags is that of no class: the crudest way to forget."""
    network = rebuild(base.network, new=("y_embedder.embedding_table.weight",))
    table = base.network.y_embedder.embedding_table.weight.detach().clone()
    table[BAG] = table[-1]
    network.y_embedder.embedding_table.weight = torch.nn.Parameter(table)
    return type(base).from_metadata(network.eval(), {**base.metadata(), **base.parts()}, None)


@pytest.fixture(scope="module")
def real(fashion_mnist: Path) -> tuple[Tensor, Tensor]:
    """Twelve images of each class."""
    images, labels = ImageDataset(fashion_mnist, image_size=32, fit="pad").load_all()
    rows = torch.cat([(labels == label).nonzero()[:12, 0] for label in range(10)])
    return images[rows], labels[rows]


@pytest.mark.filterwarnings("ignore:.*leave the covariance singular")
def test_the_report_tells_forgetting_from_erasure(
    base: Any, forgetful: Any, real: tuple[Tensor, Tensor]
) -> None:
    stages: list[str] = []
    before = base.weights_sha256(), forgetful.weights_sha256()
    report = measure_forgetting(
        base, forgetful, [BAG], build_extractor("cnn-fmnist"), *real, check=CHECK, sampler=FEW,
        on_stage=stages.append,
    )  # fmt: skip
    assert (base.weights_sha256(), forgetful.weights_sha256()) == before
    assert report.share.before == 1 > report.share.after
    # Other labels and the layers are untouched, so all that is asked of them is the same.
    assert report.kept_consistency.before == report.kept_consistency.after > 0.5
    assert report.kept_fd.before == pytest.approx(report.kept_fd.after)
    assert report.probe_accuracy.before == report.probe_accuracy.after
    assert 0.3 < report.probe_overall.after <= 1
    assert isinstance(report.relearned_share, Both)
    assert len(stages) == 5
    told = json.loads(json.dumps(report.to_json()))
    assert told["classes"] == [BAG]
    assert told["check"]["relearn_steps"] == 3
    assert "is not erased" in report.lines()[-1]
    assert len(report.lines()) == 5


def test_relearning_changes_the_rows_alone(forgetful: Any, real: tuple[Tensor, Tensor]) -> None:
    images, labels = real
    mine = labels == BAG
    again = relearn_rows(forgetful, [BAG], images[mine], labels[mine], CHECK)
    for name, value in again.network.state_dict().items():
        other = forgetful.network.state_dict()[name]
        if name != "y_embedder.embedding_table.weight":
            assert torch.equal(value, other), name
            continue
        assert value.data_ptr() != other.data_ptr()
        changed = (value != other).any(1)
        assert changed.nonzero().flatten().tolist() == [BAG]


def test_the_probe_reads_classes_and_not_chance(base: Any, real: tuple[Tensor, Tensor]) -> None:
    images, labels = real
    right, theirs = probe(base, images, labels, CHECK)
    assert theirs.bincount(minlength=10).tolist() == [6] * 10
    shuffled = labels[torch.randperm(len(labels))]
    chance, _ = probe(base, images, shuffled, CHECK)
    assert right.mean() > 0.45 > 0.3 > chance.mean()


def test_what_does_not_fit_is_refused(
    base: Any, tiny_generator: Any, real: tuple[Tensor, Tensor]
) -> None:
    images, labels = real
    judge = build_extractor("cnn-fmnist")
    with pytest.raises(EvaluationError, match="10 and 3 classes"):
        measure_forgetting(base, tiny_generator, [BAG], judge, images, labels)
    with pytest.raises(EvaluationError, match=r"must lie in 0 \.\.\. 9, got \[10\]"):
        measure_forgetting(base, base, [10], judge, images, labels)
    with pytest.raises(EvaluationError, match="there are 12 real images of class 8, and 16"):
        measure_forgetting(base, base, [BAG], judge, images, labels)
    with pytest.raises(EvaluationError, match="are of shape"):
        measure_forgetting(base, base, [BAG], judge, images[..., :28], labels)
    with pytest.raises(EvaluationError, match="does not classify"):
        measure_forgetting(tiny_generator, tiny_generator, [1], judge, images, labels)
    with pytest.raises(ConfigError, match="samples must be at least 1"):
        ForgettingCheck(samples=0)
