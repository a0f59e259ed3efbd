"""Autoregressive models in the one training loop."""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_goes_on_bit_for_bit, tiny, train, write_slice

import genlab
from genlab.data.dataset import ImageDataset
from genlab.data.pixels import from_uint8
from genlab.errors import ConfigError
from genlab.generators import AutoregressiveGenerator
from genlab.training.export import Choice, export
from genlab.training.loop.loop import Trainer
from genlab.training.objectives.likelihood import LikelihoodObjective
from genlab.training.run import Run

TINY = """
data: {path: PATH, image_size: 8, fit: resize}
network: NETWORK
objective: {name: likelihood, label_dropout: 0.2}
validation: {path: OTHER}
optimizer: {lr: 1e-3}
schedule: {warmup_kimg: 0, decay: exponential}
ema: {halflife_kimg: 0.01, rampup_ratio: null, sigma_rels: [0.05]}
output: {log_steps: 1, snapshot_kimg: 0.008, preview_kimg: 0.024, preview_count: 2,
         tensorboard: false}
batch_size: 4
duration_kimg: 0.024
license: mit
"""
"""Six steps of four images."""

NETWORKS = {
    "gated-pixelcnn": "{name: gated-pixelcnn, channels: 6, num_layers: 2, head_channels: 8}",
    "pixelcnn++": "{name: pixelcnn++, num_blocks: 1, num_filters: 4, num_mixtures: 2}",
}


@pytest.fixture(scope="module", params=NETWORKS)
def config(
    request: pytest.FixtureRequest, fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param.strip("+"))
    train_set = write_slice(fashion_mnist, folder)
    (folder / "other").mkdir()
    held_out = write_slice(fashion_mnist, folder / "other", count=40)
    path = folder / "tiny.yaml"
    text = TINY.replace("NETWORK", NETWORKS[request.param])
    path.write_text(text.replace("PATH", str(train_set)).replace("OTHER", str(held_out)))
    return path


@pytest.mark.parametrize("settings", [(), ("gradient_accumulation=2", "mixed_precision=bf16")])
def test_a_run_that_was_told_to_stop_goes_on_bit_for_bit(
    config: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    assert_goes_on_bit_for_bit(config, tmp_path, settings)


def test_the_score_is_the_mean_of_the_products_bits(config: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    export(run, tmp_path / "model", Choice())
    generator = genlab.load(tmp_path / "model")
    assert isinstance(generator, AutoregressiveGenerator)
    assert generator.has_null_class
    settings = tiny(config)
    held_out = ImageDataset(str(settings.validation.path), image_size=8, fit="resize")
    pixels, labels = held_out.load_all()
    bits = generator.bits_per_dimension(from_uint8(pixels), labels.tolist())
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "bpd" in line] == [2, 4, 6]
    assert lines[-1]["bpd"] == pytest.approx(float(bits.double().mean()), rel=1e-5)
    assert "| Bpd | " in (tmp_path / "model" / "README.md").read_text()


def test_training_saves_bits(config: Path, tmp_path: Path) -> None:
    settings = ["duration_kimg=0.16", "optimizer.lr=1e-2", "output.snapshot_kimg=0.08"]
    train(config, tmp_path, *settings, "schedule.decay=constant", "output.preview_kimg=null")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["bpd"] < lines[0]["loss"] - 1


def test_averages_start_from_the_fitted_weights(config: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny(config), tmp_path, device="cpu")
    trainer._begin()
    weights = trainer.models.main.state_dict()
    for average in trainer.models.averages:
        for name, value in average.state_dict().items():
            assert torch.equal(value, weights[name]), name


def test_hidden_classes_are_the_null_class(config: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny(config), tmp_path, device="cpu")
    trainer._begin()
    networks = {"network": trainer.models.main.eval()}
    pixels, labels = trainer.batches.first(8)
    always = LikelihoodObjective(label_dropout=0.999999)
    never = LikelihoodObjective()
    losses = [
        float(objective.compute_loss("network", networks, from_uint8(pixels), given, g).mean)
        for objective, given, g in (
            (always, labels, torch.Generator().manual_seed(0)),
            (never, torch.full_like(labels, -1), torch.Generator()),
            (never, labels, torch.Generator()),
        )
    ]
    assert losses[0] == losses[1] != losses[2]


def test_wrong_settings_are_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_dropout must lie between 0 and 1, got 1"):
        LikelihoodObjective(label_dropout=1.0)
    with pytest.raises(ConfigError, match="does not suit this objective"):
        Trainer(tiny(config, ["network.name=classifier-cnn"]), tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="no setting 'solver'"):
        Trainer(tiny(config, ["sampler.solver.name=heun"]), tmp_path, device="cpu")
