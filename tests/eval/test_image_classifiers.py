"""Classifiers by name, through which gradients run."""

from pathlib import Path

import pytest
import torch

from genlab.checkpoints.classifiers import load_classifier
from genlab.data.pixels import from_uint8
from genlab.errors import UnknownNameError
from genlab.eval.extractors.cnn import cnn_fmnist
from genlab.eval.image_classifiers import load_image_classifier
from genlab.networks.classifier_cnn import ClassifierCNN


def test_an_extractor_says_what_its_scores_are_made_of() -> None:
    extractor, classifier = cnn_fmnist(), load_image_classifier("cnn-fmnist")
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = extractor(pixels, ("logits", "features"))
    images = from_uint8(pixels).requires_grad_()
    logits = classifier.logits(images)
    torch.testing.assert_close(logits.detach(), expected["logits"], rtol=1e-4, atol=1e-4)
    assert classifier.features is not None
    features = classifier.features(images).detach()
    torch.testing.assert_close(features, expected["features"], rtol=1e-4, atol=1e-4)
    [gradient] = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().sum() > 0
    assert classifier.sha256 == extractor.weights_sha256
    assert classifier.class_names == extractor.class_names


def test_a_classifier_of_noisy_images_is_asked_without_noise() -> None:
    noisy, classifier = load_classifier("classifier-fmnist"), load_image_classifier(
        "classifier-fmnist"
    )  # fmt: skip
    noisy.prepare()
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = noisy(images, torch.tensor(noisy.least_sigma))
        assert torch.equal(classifier.logits(images), expected)
    assert classifier.sha256 == noisy.sha256()
    assert classifier.name == "classifier-fmnist"


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    network = ClassifierCNN(16, 3, 2, channels=(4, 8), class_names=["a", "b"]).eval()
    network.save_pretrained(tmp_path / "mine")
    classifier = load_image_classifier(str(tmp_path / "mine"))
    assert (classifier.name, classifier.class_names) == ("mine", ("a", "b"))
    assert classifier.image_shape == (3, 16, 16)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = network.classify(network.embed(images).pooled)
        torch.testing.assert_close(classifier.logits(images), expected)
    load_classifier("classifier-fmnist").save_pretrained(tmp_path / "noisy")
    assert load_image_classifier(str(tmp_path / "noisy")).sha256 == load_image_classifier(
        "classifier-fmnist"
    ).sha256  # fmt: skip
    with pytest.raises(UnknownNameError, match=r"no classifier .*classifier-fmnist"):
        load_image_classifier("classifier-fmist")
