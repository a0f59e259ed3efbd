"""Autoencoders by folder and by name, and what they are given to."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_autoencoder import tiny_deterministic, tiny_kl

import genlab
from genlab import DiffusionGenerator
from genlab.checkpoints.autoencoders import (
    attach_autoencoder,
    cached_repository,
    find_autoencoder,
    repository_folder,
)
from genlab.checkpoints.zoo import catalogue as zoo
from genlab.diffusion.preconditioning import EDM
from genlab.errors import CheckpointError, ConfigError, UnknownNameError
from genlab.networks import SongUNet

NAME = "stabilityai/sd-vae-ft-ema"


def latent_model() -> DiffusionGenerator:
    network = SongUNet(4, 2, 2, label_dim=3, model_channels=8, channel_mult=[1], num_blocks=1,
                       attn_resolutions=[])  # fmt: skip
    return DiffusionGenerator(network.eval(), EDM())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, ours and the hub's."""
    monkeypatch.setenv("GENLAB_HOME", str(tmp_path / "genlab"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub")
    )
    return tmp_path


def test_a_repository_that_a_pull_has_fetched(home: Path) -> None:
    assert {entry.autoencoder for entry in zoo.entries().values()} >= {NAME}
    with pytest.raises(CheckpointError, match=f"fetch it with 'hf download {NAME}'"):
        find_autoencoder(NAME)
    tiny_kl().save_pretrained(repository_folder(NAME))
    assert find_autoencoder(NAME).sha256() == tiny_kl().sha256()


def test_a_repository_in_the_hubs_own_cache(home: Path) -> None:
    assert cached_repository("somebody/vae") is None
    for name, inside in (("somebody/vae", ""), ("somebody/pipeline", "vae")):
        where = home / "hub" / f"models--{name.replace('/', '--')}"
        (where / "refs").mkdir(parents=True)
        (where / "refs" / "main").write_text("abc")
        tiny_deterministic().save_pretrained(where / "snapshots" / "abc" / inside)
        assert find_autoencoder(name).sha256() == tiny_deterministic().sha256()


def test_a_model_that_has_one(home: Path) -> None:
    model = attach_autoencoder(latent_model(), tiny_kl())
    model.save_pretrained(home / "model")
    assert find_autoencoder(home / "model").sha256() == tiny_kl().sha256()
    pulled = next(name for name, entry in zoo.entries().items() if entry.autoencoder == NAME)
    with pytest.raises(CheckpointError, match=f"fetch it with 'genlab zoo pull {pulled}'"):
        find_autoencoder(pulled)
    shutil.copytree(home / "model", zoo.model_folder(pulled))
    assert find_autoencoder(pulled).sha256() == tiny_kl().sha256()
    with pytest.raises(CheckpointError, match="a model without an autoencoder"):
        find_autoencoder("edm-fmnist")
    for name in ("sd-vae", "../x", "a/b..c", "a--b/c", "x" * 5000, "a\0b", "~nobody-here/x"):
        with pytest.raises(UnknownNameError, match="there is no autoencoder"):
            find_autoencoder(name)


def test_attached_and_replaced() -> None:
    plain = latent_model()
    assert plain.draws_latents
    assert "latents" in plain.describe()
    one = attach_autoencoder(plain, tiny_kl())
    other = attach_autoencoder(one, tiny_kl(seed=8))
    assert (one.image_shape, one.draws_latents) == ((1, 8, 8), False)
    assert len({str(model.identity()) for model in (plain, one, other)}) == 3
    with pytest.raises(ConfigError, match="latents of 4 channels, these have 2"):
        attach_autoencoder(plain, tiny_deterministic())
    gan: Any = genlab.load("biggan-fmnist")
    with pytest.raises(ConfigError, match="only diffusion models"):
        attach_autoencoder(gan, tiny_kl())


def test_latents_are_not_clipped() -> None:
    model = latent_model()
    assert model.sample(range(4), [0, 1, 2, 0], num_steps=2).abs().max() > 1


def test_two_models_need_the_same_autoencoder() -> None:
    plain = latent_model()
    whole = attach_autoencoder(plain, tiny_kl())
    stitched = {"stitch": [{"model": plain, "fraction": 0.5}]}
    with pytest.raises(ConfigError, match="genlab convert SOURCE -o FOLDER --autoencoder"):
        whole.build_sampler(stitched)
    plain.build_sampler(stitched)
    whole.build_sampler(
        {"stitch": [{"model": attach_autoencoder(plain, tiny_kl()), "fraction": 0.5}]}
    )
