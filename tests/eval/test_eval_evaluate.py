"""Whole evaluations of a tiny model and of images, with a tiny extractor."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_extractor import TinyExtractor

from genlab import DiffusionGenerator
from genlab.cli import main
from genlab.data.writing.writers import write_npz
from genlab.diffusion.preconditioning import EDM
from genlab.errors import EvaluationError
from genlab.eval.config import EvalConfig
from genlab.eval.evaluate import evaluate
from genlab.eval.leaderboard.records import Record
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.moments import Moments
from genlab.eval.samples import StoredImages
from genlab.eval.subject import Subject, holds_images
from genlab.generators.noisy_classifier import NoisyClassifier
from genlab.networks import ADMClassifier, SongUNet

STEPS = {"schedule": {"name": "karras", "num_steps": 2}}


@pytest.fixture
def real(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    pixels = generator.integers(60, 200, (40, 8, 8, 3), dtype=np.uint8)
    write_npz(tmp_path / "real.npz", iter(pixels), pixels.shape, [i % 3 for i in range(40)])
    return tmp_path / "real.npz"


def config_of(real: Path, **changes: object) -> EvalConfig:
    base = EvalConfig(extractor="tiny", metrics=["fd", "cs", "pr"], reference=str(real), count=40,
                      batch_size=16, sampler=STEPS)  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def score(subject: Subject, config: EvalConfig) -> Record:
    record = evaluate(subject, config)
    assert record is not None
    return record


def test_a_model_is_scored_and_its_card_tells_how(
    tiny_generator: DiffusionGenerator, real: Path
) -> None:
    subject = Subject(name="mine", generator=tiny_generator)
    record = score(subject, config_of(real, dataset="toys"))
    assert {"fd[tiny]", "cs[tiny]", "precision[tiny]", "recall[tiny]"} <= record.scores.keys()
    assert (record.model, record.dataset) == ("mine", "toys")
    assert record.protocol["count"] == 40
    assert record.protocol["reference"]["count"] == 40
    assert record.sampling["seeds"] == "0-39"
    assert record.sampling["sampler"]["schedule"]["num_steps"] == 2
    assert record.provenance["weights_sha256"] == tiny_generator.weights_sha256()
    assert record.environment["tf32"] == "none"
    assert record.cost["nfe"] == 3
    assert record.cost["seconds_per_image"] > 0
    assert Image.open(io.BytesIO(base64.b64decode(record.picture))).width > 100


def test_the_score_is_that_of_the_formula(tiny_generator: DiffusionGenerator, real: Path) -> None:
    config = config_of(real, metrics=["fd"])
    record = score(Subject(name="mine", generator=tiny_generator), config)
    from genlab.eval.samples import GeneratedImages

    sampler = tiny_generator.build_sampler(record.sampling["sampler"])
    labels = [tiny_generator.choose_labels([seed], None)[0] for seed in range(40)]  # type: ignore[index]
    drawn = GeneratedImages(tiny_generator, range(40), labels, sampler).read(0, 40).images
    ours = Moments.of(TinyExtractor()(drawn)["features"])
    theirs = Moments.of(TinyExtractor()(StoredImages(real).read(0, 40).images)["features"])
    expected = frechet_distance(ours, theirs)
    # Batches of 16 and 40 run other float32 kernels.
    assert record.scores["fd[tiny]"].value == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_repeats_draw_new_seeds(tiny_generator: DiffusionGenerator, real: Path) -> None:
    subject = Subject(name="mine", generator=tiny_generator)
    record = score(subject, config_of(real, metrics=["fd"], repeats=3, count=20))
    fd = record.scores["fd[tiny]"]
    assert len(set(fd.values)) == 3
    assert fd.low is not None
    assert fd.high is not None
    assert fd.low < fd.value < fd.high
    assert record.sampling["seeds"] == "0-59"


def test_images_of_a_run_are_scored_like_the_model(
    tiny_model: Path, tiny_generator: DiffusionGenerator, real: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = ["sampler.schedule.num_steps=2", "batch_size=16", "-q"]
    assert main(["sample", str(tiny_model), "-o", str(out), "--seeds", "0-39", *settings]) == 0
    stored = score(Subject.of_folder(out), config_of(real))
    drawn = score(Subject(name="tiny", generator=tiny_generator), config_of(real))
    assert stored.model == "tiny"
    assert stored.protocol == drawn.protocol
    for name, value in drawn.scores.items():
        assert stored.scores[name].value == pytest.approx(value.value, rel=1e-6)
    assert stored.provenance["weights_sha256"] == tiny_generator.weights_sha256()
    assert stored.sampling["seeds"] == "0-39"
    assert stored.cost["nfe"] == 3


def test_a_set_against_itself(real: Path) -> None:
    record = score(Subject.of_folder(real), config_of(real))
    assert record.scores["fd[tiny]"].value == pytest.approx(0, abs=1e-6)
    assert record.scores["precision[tiny]"].value == 1
    assert record.scores["recall[tiny]"].value == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reference": None}, "name them with --reference"),
        ({"metrics": ["sfd"]}, r"needs the output 'spatial', and the extractor tiny has only"),
        ({"extractor": "classifier"}, "the data set is not known"),
        ({"metrics": ["fd"], "count": 1}, "count must be at least 2"),
    ],
)
def test_what_does_not_fit_is_said_at_once(
    tiny_generator: DiffusionGenerator, real: Path, changes: dict[str, object], sentence: str
) -> None:
    subject = Subject(name="mine", generator=tiny_generator)
    with pytest.raises(ValueError, match=sentence):
        evaluate(subject, config_of(real, **changes))


def test_nearest_training_images_are_drawn(real: Path, tmp_path: Path) -> None:
    config = config_of(real, metrics=["nearest"])
    record = evaluate(Subject.of_folder(real), config, pictures=tmp_path / "pictures")
    assert record is not None
    assert record.scores["nearest_ratio[tiny]"].value == 0  # every image is its own copy
    with Image.open(tmp_path / "pictures" / "nearest.png") as picture:
        assert picture.height > 12 * 64


def test_sizes_must_agree(tiny_generator: DiffusionGenerator, tmp_path: Path) -> None:
    pixels = np.zeros((4, 16, 16, 3), np.uint8)
    write_npz(tmp_path / "big.npz", iter(pixels), pixels.shape, None)
    subject = Subject(name="mine", generator=tiny_generator)
    with pytest.raises(EvaluationError, match="the samples are 8x8 and the reference 16x16"):
        evaluate(subject, config_of(tmp_path / "big.npz"))


def test_images_have_no_repeats(real: Path) -> None:
    with pytest.raises(EvaluationError, match="repeats need a model"):
        evaluate(Subject.of_folder(real), config_of(real, repeats=2))


def test_images_and_models_are_told_apart(tiny_model: Path, real: Path, tmp_path: Path) -> None:
    assert holds_images(real)
    assert holds_images(tmp_path)
    assert not holds_images(tiny_model)
    assert not holds_images(Path("edm-fmnist"))


def test_models_of_28_pixels_are_scored_as_the_padded_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST is looked at on a black border: a model that draws none gets one."""
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path))
    network = SongUNet(28, 1, 1, label_dim=10, model_channels=8, channel_mult=[1], num_blocks=1)
    model = DiffusionGenerator(network, EDM())
    config = EvalConfig(extractor="classifier", metrics=["consistency"], dataset="fmnist",
                        count=4, sampler=STEPS)  # fmt: skip
    record = score(Subject(name="small", generator=model), config)
    assert record.protocol["count"] == 4
    assert set(record.scores) == {"consistency[cnn-fmnist]"}
    with pytest.raises(EvaluationError, match="32x32"):
        evaluate(Subject(name="small", generator=model), replace(config, dataset="cifar10"))


def test_classes_that_only_the_guidance_knows_stand_on_the_card(real: Path, tmp_path: Path) -> None:
    network = SongUNet(8, 3, 3, model_channels=8, channel_mult=[1], num_blocks=1)
    guide = ADMClassifier(8, 3, 3, 32, [1], num_blocks=1, num_head_channels=32)
    NoisyClassifier(guide, EDM()).save_pretrained(tmp_path / "guide")
    guidance = [{"name": "classifier", "classifier": str(tmp_path / "guide")}]
    subject = Subject(name="mine", generator=DiffusionGenerator(network, EDM()))
    config = config_of(real, metrics=["fd"], count=16)
    guided = replace(config, sampler={**STEPS, "guidance": guidance}, labels="balanced")
    assert score(subject, config).protocol["labels"] == "none"
    assert score(subject, guided).protocol["labels"] == "balanced"
