"""Training on encoded images: what comes out draws images."""

from pathlib import Path
from typing import Any

import pytest
from tiny_autoencoder import tiny_kl
from tiny_runs import TINY, assert_same, everything, tiny, train, write_slice

import genlab
from genlab import DiffusionGenerator
from genlab.data.dataset import ImageDataset
from genlab.errors import ConfigError
from genlab.runs.encoding import encode_dataset
from genlab.training.export import Choice, export
from genlab.training.loop.loop import Trainer
from genlab.training.run import Run


@pytest.fixture(scope="module")
def latents(fashion_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    options: dict[str, Any] = {"image_size": 16, "fit": "resize"}
    dataset = ImageDataset(write_slice(fashion_mnist, folder), **options)
    encode_dataset(dataset, tiny_kl(), folder / "out", options=options, shard_size=10)
    return folder / "out"


@pytest.fixture
def config(latents: Path, tmp_path: Path) -> Path:
    text = TINY.replace("data: {image_size: 16, fit: resize}", f"data: {{path: {latents}}}")
    text = text.replace(", augment: {p: 0.2}", "").replace("attn_resolutions: [8]", "")
    path = tmp_path / "tiny.yaml"
    path.write_text(
        text.replace("channel_mult: [1, 2]", "channel_mult: [1]\n  attn_resolutions: []")
    )
    return path


def test_product_draws_images(config: Path, latents: Path, tmp_path: Path) -> None:
    preview = ("kimg=0.02", "count=2", "sampler.schedule.num_steps=2")
    train(config, tmp_path / "run", *(f"output.preview_{setting}" for setting in preview))
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    export(Run(tmp_path / "run"), tmp_path / "model", Choice())
    generator = genlab.load(tmp_path / "model")
    assert isinstance(generator, DiffusionGenerator)
    assert (generator.state_shape, generator.image_shape) == ((2, 8, 8), (1, 16, 16))
    assert generator.autoencoder is not None
    assert generator.autoencoder.sha256() == tiny_kl().sha256()
    assert generator.sample([0], [3], {"schedule": {"num_steps": 2}}).shape == (1, 1, 16, 16)
    assert generator.class_names is None or len(generator.class_names) == 10


def test_resume_and_workers_do_not_matter(config: Path, tmp_path: Path) -> None:
    """Latents are drawn afresh in every epoch, from the run's own numbers."""
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", "duration_kimg=0.012")
    train(config, tmp_path / "parts")
    train(config, tmp_path / "read", "data.max_memory_gib=0", "data.num_workers=0")
    expected = everything(tmp_path / "whole")
    expected.pop("log")
    for name in ("parts", "read"):
        numbers = everything(tmp_path / name)
        numbers.pop("log")
        assert_same(expected, numbers)


def test_what_makes_no_sense_is_refused(config: Path, tmp_path: Path) -> None:
    def start(*overrides: str) -> Trainer:
        return Trainer(tiny(config, overrides), tmp_path / "run", device="cpu")

    with pytest.raises(ConfigError, match=r"data\.image_size has no effect on latents"):
        start("data.image_size=16")
    with pytest.raises(ConfigError, match=r"data\.fit has no effect on latents"):
        start("data.fit=pad")
    with pytest.raises(ConfigError, match="moves and colours images, not latents"):
        start("objective.augment.p=0.1")
    with pytest.raises(ConfigError, match="only diffusion models can be trained on latents"):
        start("objective={name: classifier}", "network={name: classifier-cnn}", "sampler={}")
