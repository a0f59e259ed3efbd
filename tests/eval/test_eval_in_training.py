"""Scores of samples while a run trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_finetunes import BASE, SETTINGS, finetune_config, write_fmnist, write_photographs

from genlab.choices import Fit
from genlab.cli import main
from genlab.data.pixels import to_uint8
from genlab.errors import ConfigError
from genlab.eval.extractors.base import build_extractor
from genlab.eval.in_training import SampleScores
from genlab.eval.metrics.frechet import frechet_distance
from genlab.eval.moments import Moments
from genlab.eval.samples import as_rgb
from genlab.finetuning.run import FinetuneRun
from genlab.finetuning.trainer import FinetuneTrainer
from genlab.generators.base import Generator
from genlab.training.config import DataConfig
from genlab.training.export import Choice, make_product
from genlab.training.loop.evaluation import Evaluation

FD = "fd[cnn-fmnist]"

pytestmark = pytest.mark.filterwarnings("ignore::genlab.eval.metrics.checks.EvaluationWarning")


@pytest.fixture(scope="module")
def fmnist(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fmnist(fashion_mnist, tmp_path_factory.mktemp("data"))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_holds_the_distance_of_samples_by_the_averaged_weights(
    fmnist: Path, tmp_path: Path
) -> None:
    config = finetune_config(fmnist, "bitfit", ["output.snapshot_kimg=0.012"])
    scores = SampleScores(
        extractor="cnn-fmnist", reference=config.data, training=config.data, count=8
    )
    assert isinstance(scores, Evaluation)
    trainer = FinetuneTrainer(config, tmp_path / "run", device="cpu", evaluations=[scores])
    trainer.train()
    scored = [line for line in lines_of(tmp_path / "run") if FD in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert all(scores.scores.keys() <= line.keys() for line in scored)

    generator, _ = make_product(FinetuneRun(tmp_path / "run"), Choice())
    assert isinstance(generator, Generator)
    images, labels = trainer.batches.dataset.load_all()
    chosen = labels[torch.linspace(0, len(labels) - 1, 8).long()].tolist()
    drawn = to_uint8(generator.sample(range(8), chosen, generator.sampler))
    look = build_extractor("cnn-fmnist")
    ours, theirs = (Moments.of(look(as_rgb(each))["features"]) for each in (drawn, images))
    # The run draws with what the method added, the product has it merged: equal but for rounding.
    assert scored[-1][FD] == pytest.approx(frechet_distance(ours, theirs), rel=1e-3)


def test_copies_of_training_images_are_told(fmnist: Path) -> None:
    data = DataConfig(path=str(fmnist), image_size=32, fit=Fit.pad)
    scores = SampleScores(extractor="cnn-fmnist", reference=data, training=data)
    images, _ = scores._images(data)
    values = scores.compare(images)
    assert values[FD] == pytest.approx(0, abs=1e-6)
    assert values["recall[cnn-fmnist]"] == values["precision[cnn-fmnist]"] == 1
    assert values["nearest_ratio[cnn-fmnist]"] == 0
    noise = torch.randint_like(images, 256)
    values = scores.compare(noise)
    assert values[FD] > 10
    assert values["nearest_ratio[cnn-fmnist]"] > 1


def test_a_run_stops_by_a_score_of_its_samples(
    cifar_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs = write_photographs(cifar_zip, tmp_path, count=4)
    arguments = [
        "finetune",
        BASE,
        f"--data={photographs}",
        "--method=bitfit",
        "--score=cnn-fmnist",
        "--score-images=8",
        f"-o{tmp_path / 'run'}",
        *SETTINGS,
        "data.fit=crop",
        "data.channels=1",
        "output.snapshot_kimg=0.004",
        f"stopping.metric={FD}",
        "stopping.patience=1",
        "stopping.min_delta=1000",  # nothing is such an improvement: the second one stops the run
        "--device=cpu",
        "--json",
    ]
    assert main(arguments) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["steps"] == 2
    assert "fd[cnn-fmnist] has not improved" in outcome["early_stop"]


def test_an_unknown_extractor_is_refused_before_anything_is_written(
    fmnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["finetune", BASE, f"--data={fmnist}", "--score=cnn-fmnits", f"-o{folder}"]
    assert main(arguments) == 2
    assert "cnn-fmnist" in capsys.readouterr().err
    assert not folder.exists()


def test_latents_are_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Latents:
        pass

    monkeypatch.setattr("genlab.eval.in_training.LatentDataset", Latents)
    monkeypatch.setattr("genlab.eval.in_training.open_dataset", lambda config: Latents())
    data = DataConfig(path="latents")
    with pytest.raises(ConfigError, match="latents holds latents"):
        SampleScores(extractor="cnn-fmnist", reference=data, training=data)._images(data)
