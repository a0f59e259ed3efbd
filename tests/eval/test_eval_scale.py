"""The scale of a score: real images against real ones, and against damaged ones.

docs/evaluation.md shows the numbers; `damaged` makes them.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from genlab.data.dataset import ImageDataset
from genlab.eval.collect import collect
from genlab.eval.extractors.base import FeatureExtractor, build_extractor
from genlab.eval.metrics.base import Need
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.moments import Moments
from genlab.eval.references.building import find_reference
from genlab.eval.samples import StoredImages

NOISE = (0, 4, 8, 16, 32)
"""Standard deviations of white noise, in grey levels of 255."""

BLUR = (0.0, 0.4, 0.6, 0.8, 1.2)
"""Standard deviations of a Gaussian blur, in pixels."""


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return build_extractor("cnn-fmnist")


@pytest.fixture(scope="module")
def real(extractor: FeatureExtractor) -> Moments:
    needs = [Need("moments", "features")]
    return find_reference("fmnist-train", extractor, needs).features.moments["features"]


@pytest.fixture(scope="module")
def clothes(fashion_mnist: Path) -> Tensor:
    """2,000 test images, (N, 3, 32, 32), uint8."""
    data = ImageDataset(fashion_mnist, image_size=32, fit="pad", split="test")
    return data.load_all()[0][:2000].expand(-1, 3, -1, -1)


def noisy(images: Tensor, level: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = level * torch.randn(images[:, :1].shape, generator=generator)
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor, level: float) -> Tensor:
    return images if level == 0 else gaussian_blur(images, [9, 9], [level, level])


def damaged(
    extractor: FeatureExtractor,
    real: Moments,
    images: Tensor,
    damage: Callable[[Tensor, float], Tensor],
    levels: tuple[float, ...],
) -> list[float]:
    """The score of the same images at each level of damage."""
    return [
        frechet_distance(Moments.of(extractor(damage(images, level))["features"]), real)
        for level in levels
    ]


def test_the_score_rises_with_the_noise(
    extractor: FeatureExtractor, real: Moments, clothes: Tensor
) -> None:
    scores = damaged(extractor, real, clothes, noisy, NOISE)
    assert scores == sorted(scores)
    assert scores[-1] > 10 * scores[0]


def test_the_score_rises_with_the_blur(
    extractor: FeatureExtractor, real: Moments, clothes: Tensor
) -> None:
    scores = damaged(extractor, real, clothes, blurred, BLUR)
    assert scores == sorted(scores)
    assert scores[-1] > 10 * scores[0]


@pytest.mark.slow
def test_training_images_against_themselves_and_the_test_set(
    extractor: FeatureExtractor, real: Moments, fashion_mnist: Path
) -> None:
    def moments(split: str) -> Moments:
        images = StoredImages(fashion_mnist, 32, "pad", split)
        found = collect(images, extractor, [Need("moments", "features")])
        assert found is not None
        return found.features.moments["features"]

    assert frechet_distance(moments("train"), real) == pytest.approx(0, abs=1e-6)
    test = frechet_distance(moments("test"), real)
    assert 1e-6 < test < 1
