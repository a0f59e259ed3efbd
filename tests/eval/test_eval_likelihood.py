"""Bits per dimension, with a model whose likelihood is known in closed form."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_extractor import TinyExtractor
from torch import Tensor, nn

from genlab import AutoregressiveGenerator, DiffusionGenerator, Generator
from genlab.data.writing.writers import write_npz
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError, EvaluationError
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.leaderboard.records import Record
from genlab.eval.metrics.base import METRICS, LikelihoodMetric, ScoreInfo
from genlab.eval.subject import Subject
from genlab.networks import GatedPixelCNN
from genlab.runs.processes import Processes
from genlab.samplers.base import AnySampler, Step
from genlab.samplers.gan.sampler import GanSampler


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
    def from_metadata(
        cls, network: nn.Module, metadata: Mapping[str, Any], card: str | None = None
    ) -> "Histogram":
        raise AssertionError


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Half of the pixels are 10, the others 200."""
    pixels = np.full((6, 8, 8, 3), 10, np.uint8)
    pixels[:, ::2] = 200
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, None)
    return tmp_path / "real.npz"


def score(generator: Generator, real: Path, *metrics: str, **options: Any) -> Record:
    config = EvalConfig(metrics=list(metrics), reference=str(real), **options)
    record = evaluate(Subject(name="histogram", generator=generator), config)
    assert record is not None
    return record


def bits(generator: Generator, real: Path) -> float:
    return score(generator, real, "bpd").scores["bpd"].value


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


def test_the_card_of_a_likelihood_has_no_extractor(real: Path) -> None:
    record = score(Histogram(torch.full((256,), 1 / 256)), real, "bpd")
    assert list(record.scores) == ["bpd"]
    assert record.protocol["extractor"] == {
        "name": "none", "weights_sha256": "none", "resize": "none",
    }  # fmt: skip
    assert record.protocol["metrics"] == {"bpd": {}}
    assert record.protocol["count"] == 0
    assert record.protocol["reference"]["count"] == 6


@dataclass(frozen=True, kw_only=True)
class WorstBits(LikelihoodMetric):
    """The bits of the least likely images."""

    scores = (ScoreInfo("worst-bits", lower_is_better=True),)

    images: int = 1

    def __call__(self, bits: Tensor) -> dict[str, float]:
        assert (bits.shape, bits.dtype) == ((6,), torch.float32)
        return {"worst-bits": float(bits.topk(self.images).values.mean())}


@pytest.fixture
def worst_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_loaded", dict(METRICS._loaded))
    METRICS.register("worst-bits")(WorstBits)


@pytest.mark.usefixtures("worst_bits")
def test_a_likelihood_metric_of_somebody_else(real: Path) -> None:
    uniform = Histogram(torch.full((256,), 1 / 256))
    record = score(uniform, real, "worst-bits", "bpd")
    assert {name: s.value for name, s in record.scores.items()} == {"worst-bits": 8, "bpd": 8}
    assert record.protocol["metrics"] == {"worst-bits": {"images": 1}, "bpd": {}}


@pytest.mark.usefixtures("worst_bits")
def test_both_kinds_of_metric_at_once(real: Path) -> None:
    network = GatedPixelCNN(8, 1, 0, channels=6, num_layers=1, first_kernel=3, head_channels=8)
    model = AutoregressiveGenerator(network)
    record = score(model, real, "dc", "worst-bits", "vendi", extractor="tiny", count=12)
    names = ["density[tiny]", "coverage[tiny]", "worst-bits", "vendi[tiny]"]
    assert list(record.scores) == names
    assert record.protocol["extractor"] == TinyExtractor().identity()
    assert record.protocol["count"] == 12


def test_only_one_of_many_processes_scores(real: Path) -> None:
    """Which have no samples to share out."""
    subject = Subject(name="histogram", generator=Histogram(torch.full((256,), 1 / 256)))
    config = EvalConfig(metrics=["bpd"], reference=str(real))
    assert evaluate(subject, config, processes=Processes(1, 2)) is None
    assert evaluate(subject, config, processes=Processes(0, 2)) is not None
