"""A training run's own weights as a guide: which averages and times a name can mean."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import train, write_config, write_slice

from genlab import DiffusionGenerator, load
from genlab.errors import ConfigError, TrainingError
from genlab.samplers import parts
from genlab.training.export import Choice, export
from genlab.training.named import load_from_run, parse_name
from genlab.training.run import Run

SAVED = ("ema.sigma_rels=[0.05,0.1]", "output.snapshot_kimg=0.008")


@pytest.fixture(scope="module")
def folder(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that stores its averages three times."""
    home = tmp_path_factory.mktemp("runs")
    train(write_config(home, write_slice(fashion_mnist, home)), home / "mi@ne", *SAVED)
    return home / "mi@ne"


@pytest.mark.parametrize(
    ("choices", "choice"),
    [
        ("@halflife", Choice()),
        ("@none", Choice("none")),
        ("@sigma_rel=0.15", Choice(0.15)),
        ("@sigma_rel=0.07@kimg=0.016", Choice(0.07, 16)),
        ("@posthoc=edm2@sigma_rel=0.07", Choice(0.07, posthoc="edm2")),
        ("@images=16@halflife", Choice(images=16)),
        ("@kimg=0.016", Choice(images=16)),
    ],
)
def test_a_name_means_the_weights_that_export_would_write(
    folder: Path, tmp_path: Path, choices: str, choice: Choice
) -> None:
    assert parse_name(f"{folder}{choices}") == (folder, choice)
    named: Any = parts.load("generator", f"{folder}{choices}")
    export(Run(folder), tmp_path / "model", choice)
    exported = load(tmp_path / "model")
    assert named.weights_sha256() == exported.weights_sha256()


def test_an_earlier_average_guides_the_run_itself(folder: Path, tmp_path: Path) -> None:
    export(Run(folder), tmp_path / "model", Choice())
    generator = load(tmp_path / "model")
    assert isinstance(generator, DiffusionGenerator)
    guides = [f"{folder}@sigma_rel=0.15@kimg=0.016", f"{folder}@kimg=0.008"]
    images = []
    for guide in guides:
        entry = {"name": "auto", "guide": guide, "scale": 2.0}
        sampler = generator.build_sampler({"schedule": {"num_steps": 2}, "guidance": [entry]})
        (batch,) = generator.stream([0, 1], [3, 4], sampler)
        assert batch.nfe == 6
        images.append(batch.images)
    assert not torch.equal(*images)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("@sigma_rle=0.1", "'sigma_rle=0.1' says nothing"),
        ("@sigma_rel=0.1@halflife", "says it again"),
        ("@sigma_rel=0.1@posthoc=edm", "no post-hoc rule 'edm'"),
        ("@posthoc=edm2", "leave it out with halflife"),
        ("@kimg=soon", "kimg takes a number > 0"),
        ("@sigma_rel=wide", "sigma_rel"),
    ],
)
def test_a_choice_that_means_nothing_is_told(folder: Path, choices: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_from_run(f"{folder}{choices}")


def test_what_a_run_has_not_stored_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no average by half-life after 12 images"):
        load_from_run(f"{folder}@images=12")
    with pytest.raises(ConfigError, match="names no training run"):
        parts.load("generator", f"{tmp_path / 'nowhere'}@halflife")
