"""A GAN's run, its discriminator in a folder, and what sampling and scoring make of it."""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import train, write_config, write_slice

from genlab.cli import main
from genlab.errors import ConfigError, TrainingError
from genlab.generators.analysis.calibration import calibrate
from genlab.generators.discriminator import GanDiscriminator
from genlab.generators.gan import GanGenerator
from genlab.training.export import Choice, make_product
from genlab.training.loop.batches import Batches
from genlab.training.loop.state import load_state, states
from genlab.training.objectives.gan.export import export_discriminator
from genlab.training.run import Run

CGAN = """
data: {path: PATH, image_size: 8, fit: resize}
network: {name: conditional-generator, channels: 4, dim_z: 8}
objective:
  name: gan
  discriminator: {name: conditional-discriminator, channels: 4}
  loss: {name: non-saturating}
optimizer: {lr: 1e-3, beta1: 0.5}
schedule: {warmup_kimg: 0}
ema: {halflife_kimg: 0.02, rampup_ratio: null, sigma_rels: []}
output: {log_steps: 1, preview_kimg: null, snapshot_kimg: null, tensorboard: false}
batch_size: 8
duration_kimg: 0.048
"""


@pytest.fixture(scope="module")
def config(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan")
    path = folder / "tiny.yaml"
    path.write_text(CGAN.replace("PATH", str(write_slice(fashion_mnist, folder))))
    return path


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config, folder)
    return Run(folder)


def test_export_calibrates_by_the_runs_own_images(run: Run, config: Path, tmp_path: Path) -> None:
    made = export_discriminator(run, tmp_path / "D", Choice(), calibration_images=20)
    read = GanDiscriminator.from_pretrained(tmp_path / "D")
    stored = load_state(states(run.states)[-1]).networks["discriminator"]
    weights = read.network.state_dict()
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], value) for name, value in stored.items())
    assert read.calibration == made.calibration
    assert read.calibration is not None
    assert read.calibration.images == 20
    card = (tmp_path / "D" / "README.md").read_text()
    assert "| Calibration | calibrated on 20 real images" in card
    assert "sampler.rejection.discriminator=PATH_TO_THIS_FOLDER" in card
    # The same by hand, of the first images of the run in their order.
    images, labels = Batches(run.read_config().data, run.read_config().seed).first(20)
    generator, _ = make_product(run, Choice())
    assert isinstance(generator, GanGenerator)
    assert calibrate(read, generator, images, labels).calibration == read.calibration
    raw, _ = make_product(run, Choice("none"))
    assert isinstance(raw, GanGenerator)
    assert calibrate(read, raw, images, labels).calibration != read.calibration


def test_command_line_exports_samples_and_scores(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export = ["train", "export", str(run.folder)]
    assert main([*export, "-o", "G"]) == 0
    assert main([*export, "-o", "D", "--discriminator", "--calibration-images", "32"]) == 0
    assert "D: discriminator, calibrated on 32 real images" in capsys.readouterr().out
    reject = ["sampler.rejection.discriminator=D", "sampler.rejection.burn_in=16"]
    assert main(["sample", "G", "--seeds", "0-7", *reject, "-o", "out", "--device", "cpu"]) == 0
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["rejection"]["images"] == 8
    assert main([*export, "-o", "N", "--discriminator", "--calibration-images", "0"]) == 0
    assert capsys.readouterr().out.endswith("N: discriminator, not calibrated\n")
    assert main([*export, "-o", "X", "--calibration-images", "9"]) == 2
    assert "goes with --discriminator" in capsys.readouterr().err


def test_only_runs_of_gans_have_one(fashion_mnist: Path, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "diffusion"
    train(
        write_config(tmp_path, write_slice(fashion_mnist, tmp_path)), other, "duration_kimg=0.004"
    )
    with pytest.raises(ConfigError, match="trains no discriminator: its objective is 'diffusion'"):
        export_discriminator(Run(other), tmp_path / "D", Choice())
    with pytest.raises(
        TrainingError, match="discriminator of its last state only, after 48 images"
    ):
        export_discriminator(run, tmp_path / "D", Choice(images=8))
    with pytest.raises(TrainingError, match="holds no training run"):
        export_discriminator(Run(tmp_path / "nothing"), tmp_path / "D", Choice())
