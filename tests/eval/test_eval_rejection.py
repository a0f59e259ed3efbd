"""What a record says of rejected images: straight from a model, in parts, and from a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_extractor import TinyExtractor  # noqa: F401  # registers itself

from genlab.cli import main
from genlab.data.writing.writers import write_npz
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.subject import Subject
from genlab.generators.discriminator import Calibration, GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.networks.conditional_gan import ConditionalDiscriminator, ConditionalGenerator

CALIBRATION = Calibration(slope=9.0, intercept=0.0, error_rate=0.3, log_loss=0.6, images=100)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    GanGenerator(ConditionalGenerator(8, 3, channels=4, dim_z=4)).save_pretrained("G")
    network = ConditionalDiscriminator(8, 3, channels=4)
    GanDiscriminator(network, calibration=CALIBRATION).save_pretrained("D")
    pixels = np.random.default_rng(0).integers(60, 200, (20, 8, 8, 3), dtype=np.uint8)
    write_npz(Path("real.npz"), iter(pixels), pixels.shape, [i % 3 for i in range(20)])


def _config(**changes: Any) -> EvalConfig:
    settings = {"metrics": ["fd"], "reference": "real.npz", "count": 20, "batch_size": 8}
    return EvalConfig(extractor="tiny", **{**settings, **changes})


def test_record_holds_the_acceptance_rate(folders: None) -> None:
    sampler = {"rejection": {"discriminator": "D", "burn_in": 16, "max_tries": 5}}
    generator = GanGenerator.from_pretrained("G")
    record = evaluate(
        Subject(name="mine", generator=generator), _config(sampler=sampler, repeats=2)
    )
    assert record is not None
    told = record.sampling["rejection"]
    assert told["images"] == 40  # of both draws
    assert told["accepted"] + told["exhausted"] == 40
    assert told["acceptance_rate"] == pytest.approx(told["accepted"] / told["tries"], abs=1e-6)
    assert record.cost["nfe"] == told["nfe"] == pytest.approx(2 * told["tries"] / 40)
    assert isinstance(told["max_logit"], float)
    assert record.sampling["sampler"]["rejection"]["discriminator"] == "D"
    with torch.no_grad():
        [batch] = generator.stream(range(40), None, sampler, 40)
    assert batch.tallies["rejection"]["tries"] == told["tries"]

    plain = evaluate(Subject(name="mine", generator=generator), _config())
    assert plain is not None
    assert "rejection" not in plain.sampling
    assert plain.cost["nfe"] == 1


def test_a_folder_of_samples_tells_the_same(folders: None) -> None:
    reject = ["sampler.rejection.discriminator=D", "sampler.rejection.burn_in=16"]
    sample = ["sample", "G", "--seeds", "0-19", *reject, "-o", "out", "--device", "cpu"]
    assert main(sample) == 0
    subject = Subject.of_folder(Path("out"))
    record = evaluate(subject, _config())
    assert record is not None
    assert record.sampling["rejection"] == subject.manifest["rejection"]
    assert record.cost["nfe"] == subject.manifest["nfe"]
