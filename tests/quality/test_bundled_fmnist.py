"""The bundled model's pictures are good: a classifier of real clothes recognises their classes."""

import pytest
import torch

import genlab
from genlab.eval.collect import collect
from genlab.eval.extractors.base import build_extractor
from genlab.eval.metrics.base import Need
from genlab.eval.metrics.classification import class_consistency
from genlab.eval.samples import GeneratedImages
from genlab.generators.base import Generator

NUM_SAMPLES = 1000


@pytest.mark.slow
def test_samples_are_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    generator: Generator = genlab.load("edm-fmnist")
    labels = [number % 10 for number in range(NUM_SAMPLES)]
    samples = GeneratedImages(generator, range(NUM_SAMPLES), labels, generator.sampler)
    found = collect(samples, build_extractor("cnn-fmnist"), [Need("rows", "logits")])
    assert found is not None
    made = class_consistency(found.features.rows["logits"], torch.tensor(labels))
    with capsys.disabled():
        print(f"\nrecognised: {made:.1%} of {NUM_SAMPLES} samples")
    assert made >= 0.90
