"""Labels of samples against the classes of a classifier or of real images: by name, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_extractor import TinyExtractor

from genlab.data.dataset import ImageDataset
from genlab.errors import EvaluationError
from genlab.eval.classes import translate
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.metrics.base import METRICS, FeatureSet, Need
from genlab.eval.references.building import find_reference
from genlab.eval.subject import Subject

NAMES = ("boot", "coat", "bag")


def moved(
    labels: list[int], names: tuple[str, ...] | None, other: tuple[str, ...] | None
) -> list[int]:
    numbers = translate(torch.tensor(labels), names, 3, other, "the samples", "the classifier")
    return numbers.tolist()


def test_classes_are_matched_by_name_where_both_sides_have_names() -> None:
    assert moved([0, 1, 1], ("Bag", "boot"), NAMES) == [2, 0, 0]
    assert moved([0, 1, 2], NAMES, NAMES) == [0, 1, 2]
    assert moved([0, 1], ("crane", "crane"), ("crane", "crane")) == [0, 1]  # ImageNet with itself


def test_folders_called_by_number_have_numbers() -> None:
    assert moved([0, 1, 2], ("0", "1", "2"), NAMES) == [0, 1, 2]
    assert moved([0, 1], ("0", "2"), NAMES) == [0, 2]
    assert moved([0, 1, 2], ("0", "10", "2"), tuple(str(i) for i in range(11))) == [0, 10, 2]


def test_without_names_on_one_side_numbers_are_compared() -> None:
    assert moved([2, 0], None, NAMES) == [2, 0]
    assert moved([2, 0], NAMES, None) == [2, 0]
    with pytest.raises(EvaluationError, match=r"between 0 and 3, the classifier .* 0 \.\.\. 2"):
        moved([3, 0], None, NAMES)


def test_a_class_that_the_other_side_lacks_is_refused_by_name() -> None:
    assert moved([0], ("bag", "dragon"), NAMES) == [2]  # no sample is of the other class
    with pytest.raises(EvaluationError, match=r"classes dragon, which the classifier .*boot, coat"):
        moved([0, 1], ("bag", "dragon"), NAMES)
    with pytest.raises(EvaluationError, match=r"do not match: 'bag' names 2 classes"):
        moved([0], ("bag",), ("Bag", "BAG", "x"))


def test_consistency_does_not_depend_on_how_the_classes_are_numbered() -> None:
    logits = torch.eye(3)[[2, 0, 1]]
    rows = {"logits": logits}
    by_name = FeatureSet(
        count=3,
        rows=rows,
        labels=torch.tensor([0, 1, 2]),
        class_names=("bag", "boot", "coat"),
        logit_names=NAMES,
    )
    assert METRICS.build("consistency")(by_name, None) == {"consistency": 1.0}


def write_named(folder: Path, fashion_mnist: Path, count: int, *, numbered: bool = False) -> Path:
    """Test images of Fashion-MNIST in folders of their classes; no folder can hold a slash."""
    data = ImageDataset(fashion_mnist, image_size=32, fit="pad", split="test")
    assert data.class_names is not None
    for index in range(count):
        pixels, label = data[index]
        name = str(label) if numbered else data.class_names[label].replace("/", "_")
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(folder / name / f"{index:05d}.png")
    return folder


@pytest.mark.parametrize("numbered", [False, True])
def test_real_images_in_named_and_numbered_folders_have_one_consistency(
    tmp_path: Path, fashion_mnist: Path, numbered: bool
) -> None:
    folder = write_named(tmp_path / "set", fashion_mnist, 400, numbered=numbered)
    config = EvalConfig(extractor="cnn-fmnist", metrics=["consistency"], reference=None)
    record = evaluate(Subject.of_folder(folder), config)
    assert record is not None
    [score] = record.scores.values()
    assert score.value == pytest.approx(0.925)  # measured with the labels of the idx files


def test_cas_matches_the_classes_of_samples_and_reference_by_name() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (96, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(96) % 3
    images[torch.arange(96), labels] += 120
    samples = FeatureSet(
        count=96, images=images, labels=(labels + 1) % 3, class_names=("blue", "red", "green")
    )
    reference = FeatureSet(
        count=96, images=images, labels=labels, class_names=("red", "green", "blue")
    )
    metric = METRICS.build("cas", kimg=0.64, batch_size=32, width=8, shift=0)
    assert metric(samples, reference)["cas"] > 0.9


# --- what a reference is called ----------------------------------------------------------------


def name_of(spec: Path, **options: Any) -> str:
    found = find_reference(str(spec), TinyExtractor(), [Need("moments", "features")], **options)
    return str(found.identity["name"])


def test_test_images_in_folders_are_not_recorded_as_training_images(
    tmp_path: Path, fashion_mnist: Path
) -> None:
    folder = write_named(tmp_path / "some-images", fashion_mnist, 30)
    assert name_of(folder, dataset="fmnist") == "some-images"


def test_a_part_is_named_only_where_the_set_has_parts(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number in range(3):
            (tmp_path / "set" / part / "a").mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (8, 8), (9 * number, 0, 0))
            image.save(tmp_path / "set" / part / "a" / f"{number}.png")
    assert name_of(tmp_path / "set", split="test") == "set-test"
    assert name_of(tmp_path / "set") == "set-train"
    assert name_of(tmp_path / "set" / "test") == "test"


@pytest.mark.slow
def test_the_whole_test_set_has_the_name_of_the_bundled_one(fashion_mnist: Path) -> None:
    assert name_of(fashion_mnist, dataset="fmnist", split="test") == "fmnist-test"


def test_numbers_are_not_compared_where_the_named_side_has_another_number_of_classes() -> None:
    with pytest.raises(EvaluationError, match=r"2 classes bag, boot, and the classifier has 3 "):
        moved([0, 1], ("bag", "boot"), None)
    assert moved([0, 1], ("0", "1"), None) == [0, 1]  # numbers say which classes they are
