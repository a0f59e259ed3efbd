"""Scores that ask a classifier."""

from pathlib import Path

import pytest
import torch

from genlab.data.dataset import ImageDataset
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.extractors.base import build_extractor
from genlab.eval.metrics.base import METRICS, FeatureMetric, FeatureSet
from genlab.eval.metrics.classification import class_consistency
from genlab.eval.samples import as_rgb

CAS = {"kimg": 0.64, "batch_size": 32, "width": 8, "shift": 0}
"""Twenty steps of a tiny classifier."""


def coloured(count: int, seed: int = 0) -> FeatureSet:
    """Noise on three colours: the class of an image is its brightest channel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 120
    return FeatureSet(count=count, images=images, labels=labels)


def cas(**options: object) -> FeatureMetric:
    return METRICS.build("cas", **{**CAS, **options})


def shuffled(samples: FeatureSet) -> FeatureSet:
    assert samples.labels is not None
    order = torch.randperm(samples.count, generator=torch.Generator().manual_seed(1))
    return FeatureSet(count=samples.count, images=samples.images, labels=samples.labels[order])


def test_consistency_counts_agreements() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [3.0, 4.0], [5.0, 0.0]])
    assert class_consistency(logits, torch.tensor([1, 0, 0, 0])) == 0.75
    with pytest.raises(EvaluationError, match=r"between 0 and 2, the classifier has .* 0 \.\.\. 1"):
        class_consistency(logits, torch.tensor([1, 2, 0, 0]))


def test_consistency_needs_labels() -> None:
    metric = METRICS.build("consistency")
    rows = {"logits": torch.randn(4, 3)}
    for labels in (None, torch.full((4,), -1)):
        with pytest.raises(EvaluationError, match="needs the class of every image"):
            metric(FeatureSet(count=4, rows=rows, labels=labels), None)
    samples = FeatureSet(count=4, rows=rows)
    object.__setattr__(samples, "labels", torch.arange(3))  # as only an unchecked program could
    with pytest.raises(EvaluationError, match="3 labels for 4 images"):
        metric(samples, None)
    with pytest.raises(EvaluationError, match="no rows of 'logits'"):
        metric(FeatureSet(count=4, labels=torch.arange(4)), None)


def test_consistency_of_real_images_is_the_accuracy(fashion_mnist: Path) -> None:
    dataset = ImageDataset(fashion_mnist, image_size=32, fit="pad", split="test")
    pixels, labels = (part[:500] for part in dataset.load_all())
    logits = build_extractor("cnn-fmnist")(as_rgb(pixels), ("logits",))["logits"]
    samples = FeatureSet(count=500, rows={"logits": logits}, labels=labels)
    found = METRICS.build("consistency")(samples, None)
    assert found == {"consistency": float((logits.argmax(1) == labels).double().mean())}
    assert found["consistency"] > 0.85
    moved = FeatureSet(count=500, rows={"logits": logits}, labels=(labels + 1) % 10)
    assert METRICS.build("consistency")(moved, None)["consistency"] < 0.1


def test_one_learns_from_good_samples_only() -> None:
    reference = coloured(60, seed=5)
    good = cas()(coloured(96), reference)["cas"]
    assert good > 0.9
    assert cas()(shuffled(coloured(96)), reference)["cas"] < good - 0.3


def test_the_score_repeats_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first = cas(kimg=0.128)(coloured(96), coloured(60, 5))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    with torch.no_grad():
        assert cas(kimg=0.128)(coloured(96), coloured(60, 5)) == first


def test_real_images_beat_shuffled_ones(fashion_mnist: Path) -> None:
    train = _slice(fashion_mnist, "train", 1000)
    test = _slice(fashion_mnist, "test", 500)
    settings = {"kimg": 6.4, "width": 16, "shift": 0}
    real = METRICS.build("cas", **settings)(train, test)["cas"]
    wrong = METRICS.build("cas", **settings)(shuffled(train), test)["cas"]
    assert real > 0.55
    assert wrong < 0.3  # chance is 0.1


@pytest.mark.slow
def test_the_whole_recipe(fashion_mnist: Path) -> None:
    train, test = _slice(fashion_mnist, "train", 2000), _slice(fashion_mnist, "test", 2000)
    # Measured: 0.82 and 0.05.
    assert METRICS.build("cas")(train, test)["cas"] > 0.79
    assert METRICS.build("cas")(shuffled(train), test)["cas"] < 0.3


def _slice(folder: Path, split: str, count: int) -> FeatureSet:
    dataset = ImageDataset(folder, image_size=32, fit="pad", split=split)
    pixels, labels = dataset.load_all()
    return FeatureSet(count=count, images=as_rgb(pixels[:count]), labels=labels[:count])


def _without(samples: FeatureSet, *, images: bool = False, labels: bool = False) -> FeatureSet:
    return FeatureSet(
        count=samples.count,
        images=None if images else samples.images,
        labels=None if labels else samples.labels,
    )


def test_what_is_missing_is_named() -> None:
    good = coloured(96)
    for samples, reference, named in (
        (good, None, "images of the reference"),
        (_without(good, images=True), good, "images of the samples"),
        (good, _without(good, labels=True), "the reference have none"),
        (coloured(31), good, "at least one batch of 32"),
        (good, coloured(2), r"the reference has the classes 0 \.\.\. 1"),
    ):
        with pytest.raises(EvaluationError, match=named):
            cas()(samples, reference)
    assert good.images is not None
    smaller = FeatureSet(count=96, images=good.images[..., :4, :4], labels=good.labels)
    with pytest.raises(EvaluationError, match="one size"):
        cas()(smaller, good)
    with pytest.raises(ConfigError, match="kimg must be above 0"):
        cas(kimg=0)


def test_settings_stand_on_the_card() -> None:
    assert METRICS.build("cas").settings() == {
        "kimg": 25.6,
        "batch_size": 32,
        "width": 32,
        "lr": 3e-3,
        "weight_decay": 0.05,
        "shift": 2,
        "flip": True,
        "seed": 0,
    }
