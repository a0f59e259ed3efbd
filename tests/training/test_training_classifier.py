"""A classifier in the one training loop: an objective that trains no generator."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import (
    assert_goes_on_bit_for_bit,
    assert_keeps_its_micro_batches,
    assert_refused,
    assert_same,
    everything,
    tiny,
    train,
    write_slice,
)

from genlab.cli import main
from genlab.data.augment.jitter import random_flip, random_shift
from genlab.errors import ConfigError, DataError, OutputError
from genlab.networks import ClassifierCNN
from genlab.training.export import Choice, export
from genlab.training.loop.loop import Trainer
from genlab.training.objectives.classification import ClassifierObjective
from genlab.training.run import Run

TINY = """
data: {path: PATH, image_size: 16, fit: resize, channels: 3}
network: {name: classifier-cnn, channels: [8, 16], dropout: 0.1}
objective: {name: classifier, label_smoothing: 0.1, flip: true, shift: 2}
validation: {path: OTHER}
optimizer: {lr: 1e-3, weight_decay: 0.01}
schedule: {warmup_kimg: 0.01}
output: {log_steps: 1, snapshot_kimg: 0.008, tensorboard: false}
batch_size: 4
duration_kimg: 0.024
license: mit
"""
"""Six steps of four images."""


@pytest.fixture(scope="module")
def config(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    train_set = write_slice(fashion_mnist, folder)
    other = folder / "other"
    other.mkdir()
    held_out = write_slice(fashion_mnist, other, count=48)
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("PATH", str(train_set)).replace("OTHER", str(held_out)))
    return path


@pytest.mark.parametrize("settings", [(), ("gradient_accumulation=2", "mixed_precision=bf16")])
def test_a_run_that_was_told_to_stop_goes_on_bit_for_bit(
    config: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert_goes_on_bit_for_bit(config, tmp_path, settings)


def test_micro_batches_of_a_run_stay_as_they_are(config: Path, tmp_path: Path) -> None:
    assert_keeps_its_micro_batches(config, tmp_path)


def log_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_accuracy_stands_in_the_log_where_snapshots_are_stored(
    config: Path, tmp_path: Path
) -> None:
    train(config, tmp_path)
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines if "accuracy" in line] == [2, 4, 6]
    assert lines[0]["loss"] == pytest.approx(math.log(10), abs=0.3)  # it knows nothing yet
    assert not (tmp_path / "previews").exists()
    # Judging must not touch what is trained.
    train(config, tmp_path / "blind", "validation.path=null", "output.snapshot_kimg=null")
    assert_same(everything(tmp_path), everything(tmp_path / "blind"))


def test_accuracy_is_that_of_the_averaged_weights(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    export(run, tmp_path / "out", Choice())
    network = ClassifierCNN.from_pretrained(tmp_path / "out").eval()
    trainer = Trainer(tiny(config), tmp_path / "other", device="cpu")
    assert trainer.recorder.validate is not None
    accuracy = trainer.recorder.validate(network)["accuracy"]
    assert log_lines(run.folder)[-1]["accuracy"] == pytest.approx(accuracy, rel=1e-5)  # 6 digits


def test_running_statistics_are_averaged_with_the_weights(config: Path, tmp_path: Path) -> None:
    # At ramp-up 0 the average is the last weights, statistics included.
    train(config, tmp_path / "run", "ema.halflife_kimg=0")
    export(Run(tmp_path / "run"), tmp_path / "averaged", Choice())
    export(Run(tmp_path / "run"), tmp_path / "raw", Choice.parse("none"))
    averaged, raw = (
        load_file(tmp_path / name / "diffusion_pytorch_model.safetensors")
        for name in ("averaged", "raw")
    )
    names = [name for name in raw if name.endswith(("running_mean", "running_var"))]
    assert names
    for name in names:
        assert not torch.equal(raw[name], torch.full_like(raw[name], name.endswith("var")))
        assert torch.equal(averaged[name], raw[name])


def test_training_learns(config: Path, tmp_path: Path) -> None:
    # 32 images learnt by heart; a third of the 48 held out are others.
    plain = ("objective.flip=false", "objective.shift=0", "objective.label_smoothing=0")
    steps = ("duration_kimg=3", "batch_size=16", "optimizer.lr=1e-2", "network.channels=[16,32]")
    train(config, tmp_path, *plain, *steps, "output.log_steps=20", "output.snapshot_kimg=1")
    lines = log_lines(tmp_path)
    assert lines[-1]["loss"] < 0.5 < 1.5 < lines[0]["loss"]
    assert lines[-1]["accuracy"] > 0.6


def test_the_exported_folder(config: Path, tmp_path: Path) -> None:
    names = ",".join("abcdefghij")
    train(config, tmp_path / "run", f"class_names=[{names}]")
    export(Run(tmp_path / "run"), tmp_path / "out", Choice(), "float16", {"Score": "1"})
    weights = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {
        torch.float16
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text())["class_names"] == list(
        "abcdefghij"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "tags: [image-classification, classifier]",
        "| Accuracy | ",
        "on slice.npz (average by half-life)",
        "| Score | 1 |",
        "genlab eval",
    ):
        assert text in card
    assert str(tmp_path.parent) not in card  # nobody's folders
    assert "genlab sample" not in card


def test_a_folder_that_cannot_be_written(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export(Run(tmp_path / "run"), tmp_path / "file" / "out", Choice())


@pytest.mark.parametrize(
    ("setting", "error", "named"),
    [
        ("objective.shift=-1", ConfigError, "shift must be at least 0"),
        ("objective.label_smoothing=1", ConfigError, "label_smoothing"),
        ("objective.mixup=1", ConfigError, "no setting 'mixup'"),
        ("data.labels=false", ConfigError, "at least 2 classes"),
        ("network={name: song-unet}", ConfigError, "does not suit this objective"),
        ("network.num_classes=5", ConfigError, "num_classes is 5 but the data"),
        ("network.chanels=[8]", ConfigError, "did you mean 'channels'"),
        ("sampler.solver.name=euler", ConfigError, "trains no generator"),
        ("output.preview_sampler.solver.name=euler", ConfigError, "trains no generator"),
        ("gradient_checkpointing=true", ConfigError, "gradient_checkpointing"),
        ("validation.path=/nowhere", DataError, "/nowhere"),
        ("validation={path: null, split: train}", ConfigError, "those in training"),
        ("class_names=[a,b]", ConfigError, "2 class names"),
    ],
)
def test_wrong_settings_are_named_before_training(
    config: Path, tmp_path: Path, setting: str, error: type[Exception], named: str
) -> None:
    assert_refused(config, tmp_path, [setting], error, named)


def test_validation_needs_an_objective_with_a_score(config: Path, tmp_path: Path) -> None:
    gan = [
        "objective={name: gan, discriminator: {name: conditional-discriminator, channels: 4}}",
        "network={name: conditional-generator, channels: 4, dim_z: 8}",
    ]
    with pytest.raises(ConfigError, match="validation has no effect"):
        Trainer(tiny(config, gan), tmp_path / "run", device="cpu")


def test_validation_images_must_fit(config: Path, tmp_path: Path) -> None:
    images, labels = np.zeros((4, 16, 16, 1), np.uint8), np.arange(4)
    np.savez(tmp_path / "few.npz", arr_0=images, arr_1=labels)
    settings = [f"validation.path={tmp_path / 'few.npz'}"]
    with pytest.raises(ConfigError, match="of 4 classes, those in training"):
        Trainer(tiny(config, settings), tmp_path / "run", device="cpu")


def test_flips_are_flips() -> None:
    x = torch.randn(64, 3, 4, 4)
    y = random_flip(x, torch.Generator().manual_seed(0))
    kept = (y == x).flatten(1).all(1)
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 16 < kept.sum() < 48  # 4 standard deviations of 64 fair coins


def test_shifts_are_shifts() -> None:
    x = torch.zeros(200, 2, 7, 9)
    x[:, :, 3, 4] = 1.0
    y = random_shift(x, 2, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    where = (y[:, 0] == 1).nonzero()
    assert len(where) == 200
    assert torch.equal(y[:, 0], y[:, 1])
    offsets = {(int(r) - 3, int(c) - 4) for _, r, c in where}
    assert offsets == {(r, c) for r in range(-2, 3) for c in range(-2, 3)}
    assert set(y.unique().tolist()) == {-1.0, 0.0, 1.0}  # black comes in


def test_the_loss_is_the_cross_entropy() -> None:
    objective = ClassifierObjective(flip=False, label_smoothing=0.2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    x, labels = torch.randn(3, 3, 2, 2), torch.tensor([0, 3, 1])
    loss = objective.compute_loss(
        "network", {"network": network}, x, labels, torch.Generator().manual_seed(0)
    )
    log_p = network(x).log_softmax(1)
    target = torch.full((3, 4), 0.05).scatter_add_(1, labels[:, None], torch.full((3, 1), 0.8))
    expected = -(target * log_p).sum()
    assert torch.allclose(loss.total, expected, rtol=1e-6)  # another order of sums
    assert torch.allclose(loss.mean, expected / 3, rtol=1e-6)


def test_the_command_line_tells_the_accuracy(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    assert main(["train", str(config), "-o", run, "--device", "cpu"]) == 0
    assert re.search(r"0\.0 kimg, loss .*, accuracy \d+\.\d\d%", capsys.readouterr().err)
    assert main(["train", "export", run, "-o", out]) == 0
    assert "average by half-life after 24 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "config.json").is_file()
