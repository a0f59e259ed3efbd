"""Bits per dimension, with a model whose likelihood is known in closed form."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genlab import DiffusionGenerator, Generator
from genlab.data.writers import write_npz
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.subject import Subject
from genlab.samplers.base import AnySampler, Step
from genlab.samplers.gan import GanSampler


class Histogram(Generator):
    """Every pixel by itself, from one histogram of 256 values."""

    family: ClassVar[str] = "autoregressive"

    def __init__(self, probabilities: Tensor) -> None:
        self.probabilities = nn.Parameter(probabilities)
        network = nn.ParameterDict({"probabilities": self.probabilities})
        super().__init__(network, image_shape=(3, 8, 8), num_classes=0)

    def bits_per_dimension(self, images: Tensor, labels: Sequence[int] | None = None) -> Tensor:
        values = ((images + 1) * 127.5).round().long()
        return -self.probabilities[values].log2().flatten(1).mean(1)

    sampler_class: ClassVar[type[AnySampler]] = GanSampler

    def check_sampler(self, sampler: Any) -> None:
        pass

    @property
    def evaluations(self) -> int:
        return 0

    def steps(
        self,
        noise: Noise,
        labels: Sequence[int] | None,
        sampler: Any,
        latents: Any = None,
        **_: Any,
    ) -> Iterator[Step]:
        raise AssertionError("a likelihood needs no samples")

    @classmethod
    def from_facts(
        cls, network: nn.Module, facts: Mapping[str, Any], card: str | None = None
    ) -> "Histogram":
        raise AssertionError


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Half of the pixels are 10, the others 200."""
    pixels = np.full((6, 8, 8, 3), 10, np.uint8)
    pixels[:, ::2] = 200
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, None)
    return tmp_path / "real.npz"


def bits(generator: Generator, real: Path) -> float:
    config = EvalConfig(metrics=["bpd"], reference=str(real))
    record = evaluate(Subject(name="histogram", generator=generator), config)
    assert record is not None
    return record.scores["bpd"].value


def test_a_model_that_knows_nothing_pays_8_bits(real: Path) -> None:
    assert bits(Histogram(torch.full((256,), 1 / 256)), real) == pytest.approx(8, rel=1e-6)


def test_a_model_that_knows_the_values_pays_their_entropy(real: Path) -> None:
    probabilities = torch.zeros(256)
    probabilities[10], probabilities[200] = 0.25, 0.75
    expected = (math.log2(4) + math.log2(4 / 3)) / 2
    assert bits(Histogram(probabilities), real) == pytest.approx(expected, rel=1e-6)


def test_an_impossible_image_is_named(real: Path) -> None:
    probabilities = torch.zeros(256)
    probabilities[10] = 1
    with pytest.raises(EvaluationError, match="bpd: the likelihood of real image 0 is not finite"):
        bits(Histogram(probabilities), real)


def test_a_family_without_likelihood_says_so(
    tiny_generator: DiffusionGenerator, real: Path
) -> None:
    with pytest.raises(ConfigError, match="family 'diffusion' tells no likelihood"):
        bits(tiny_generator, real)
