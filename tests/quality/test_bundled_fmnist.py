"""The bundled model's pictures are good: a classifier of real clothes recognises their classes."""

import sys
from pathlib import Path

import pytest
import torch

import genlab
from genlab.data.dataset import ImageDataset

sys.path.insert(0, str(Path(__file__).parent))
import fmnist_classifier  # a helper beside this file, which is not a package

NUM_SAMPLES = 1000


def _real(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = ImageDataset(folder, image_size=32, fit="pad", split=split)
    images, labels = data.load_all()
    return images.float() / 127.5 - 1, labels


@pytest.mark.slow
def test_samples_are_recognised(fashion_mnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = fmnist_classifier.train(*_real(fashion_mnist, "train"))
    images, labels = _real(fashion_mnist, "test")
    real = (fmnist_classifier.predict(network, images) == labels).float().mean().item()

    generator = genlab.load("edm-fmnist")
    wanted = torch.arange(NUM_SAMPLES) % 10
    samples = generator.sample(range(NUM_SAMPLES), wanted.tolist(), batch_size=50)
    made = (fmnist_classifier.predict(network, samples.float()) == wanted).float().mean().item()

    with capsys.disabled():
        print(f"\nrecognised: {made:.1%} of {NUM_SAMPLES} samples, {real:.1%} of real test images")
    assert real >= 0.90, "the judge itself must be good"
    assert made >= 0.90
