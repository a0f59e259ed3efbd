"""The bundled models' pictures are good: a classifier of real clothes recognises their classes."""

import json
import re
from pathlib import Path

import pytest
import torch

import genlab
from genlab.checkpoints.bundled import bundled_card
from genlab.cli import main
from genlab.eval.collect import collect
from genlab.eval.extractors.base import build_extractor
from genlab.eval.metrics.base import Need
from genlab.eval.metrics.classification import class_consistency
from genlab.eval.samples import GeneratedImages
from genlab.generators.base import Generator

NUM_SAMPLES = 500
"""Standard error: 1.3 % at a share of 90 %."""

RECOGNISED = {
    "biggan-fmnist": 0.85,
    "pixelcnnpp-fmnist": 0.84,
    "edm-fmnist": 0.89,
    "dit-fmnist": 0.87,
    "dit-fmnist-s": 0.82,
}
"""At least this share of samples; the cards have it of 2,000."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOGNISED)
def test_samples_are_recognised(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    generator: Generator = genlab.load(name)
    labels = [number % 10 for number in range(NUM_SAMPLES)]
    samples = GeneratedImages(
        generator, range(NUM_SAMPLES), labels, generator.sampler, image_size=32
    )
    found = collect(samples, build_extractor("cnn-fmnist"), [Need("rows", "logits")])
    assert found is not None
    made = class_consistency(found.features.rows["logits"], torch.tensor(labels))
    with capsys.disabled():
        print(f"\n{name}: {made:.1%} of {NUM_SAMPLES} samples recognised")
    assert made >= RECOGNISED[name]


@pytest.mark.slow
def test_likelihood_is_that_of_the_card(
    fashion_mnist: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    card = re.search(
        r"\| Bpd \| ([0-9.]+) on fashion-mnist, test", bundled_card("pixelcnnpp-fmnist")
    )
    assert card is not None
    command = ["eval", "pixelcnnpp-fmnist", "--metrics", "bpd", "--reference", str(fashion_mnist)]
    assert main([*command, "reference_split=test", "--no-record", "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)["scores"]
    assert scores["bpd"]["value"] == pytest.approx(float(card[1]), abs=1e-4)  # weights in float16
