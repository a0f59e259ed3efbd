"""What a dry run of training refuses, and that it builds nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genlab.cli import main
from genlab.config import load, preset_names
from genlab.data.writing.writers import write_npz
from genlab.errors import GenLabError
from genlab.training.config import TrainConfig
from genlab.training.loop.batches import DataMetadata
from genlab.training.objectives.base import build_objective
from genlab.training.rehearsal import rehearse


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 1), dtype=np.uint8)
    write_npz(path, iter(pixels), pixels.shape, [0, 1, 2] * 4)
    return str(path)


SMALL = ["data.image_size=32", "duration_kimg=0.01", "batch_size=4"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.patchsize=2", "no argument 'patchsize'; did you mean 'patch_size'"),
        ("network.name=song", "there is no network 'song'"),
        ("network.img_resolution=16", "network.img_resolution is 16 but the data"),
        ("objective.label_dropout=2", "label_dropout"),
        ("objective.name=difusion", "did you mean 'diffusion'"),
        ("optimizer.networks={judge: {lr: 1}}", "settings for 'judge'"),
        ("batch_size=5", "cannot be shared"),
        ("sampler.solver.name=huen", "did you mean 'heun'"),
        ("sampler.guidance=cfg", "named without a scale"),
        ("output.preview_sampler.schedule.num_steps=0", "num_steps"),
        ("validation.path=/nowhere.npz", "nowhere"),
        ("data.path=/nowhere.npz", "nowhere"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    images: str, setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"data.path={images}", *SMALL, "gradient_accumulation=2", setting]
    command = ["train", "edm-fmnist", *given, "-o", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*command, "--dry-run"]) == 2
    refused = capsys.readouterr().err
    assert message in refused
    assert main(command) == 2
    assert not list(tmp_path.iterdir())


def test_a_sound_dry_run_builds_and_writes_nothing(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real: list[Any] = []
    init = torch.nn.Parameter.__new__

    def counting(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        real.extend([data] if data is not None and data.device.type != "meta" else [])
        return init(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", counting)
    command = ["train", "edm-fmnist", f"data.path={images}", *SMALL, "--device", "cpu", "--dry-run"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    assert not real
    assert not list(tmp_path.iterdir())
    lines = [line[4:] for line in capsys.readouterr().out.splitlines() if line.startswith("#   ")]
    assert any(line.startswith("objective.") for line in lines)
    for line in lines:  # each is a setting that changes nothing
        load(TrainConfig, "edm-fmnist", "train", [line])


def test_a_dry_run_knows_the_run_in_the_folder(images: str, tmp_path: Path) -> None:
    from genlab.training.loop.batches import Batches
    from genlab.training.run import Run

    config = load(TrainConfig, "edm-fmnist", "train", [f"data.path={images}", *SMALL])
    Run(tmp_path).start(config, Batches(config.data, 0).metadata, "a test")
    other = load(TrainConfig, "edm-fmnist", "train", [f"data.path={images}", *SMALL, "seed=7"])
    rehearse(config, tmp_path, "cpu")
    with pytest.raises(GenLabError, match="seed=0, now it is 7"):
        rehearse(other, tmp_path, "cpu")


@pytest.mark.parametrize("name", preset_names("train"))
def test_every_recipe_can_be_rehearsed(name: str) -> None:
    config = load(TrainConfig, name, "train")
    objective = build_objective(config.objective)
    grey = "fmnist" in name
    size = config.data.image_size or (28 if grey else 32)
    channels = config.data.channels or (1 if grey else 3)
    if "latent" in name or "encoded" in name:
        pytest.skip("of latents, whose shape an autoencoder gives")
    metadata = DataMetadata(
        num_images=10, image_shape=(channels, size, size), num_classes=10, class_names=None
    )
    with torch.device("meta"):
        network = objective.build(config.network, metadata)[objective.main]
    objective.product(network, None, config.sampler)
