"""``output_type="latent"`` and ``vae=``: latent models in the manner of diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_autoencoder import tiny_deterministic, tiny_kl

from genlab import DiffusionGenerator, GenLabPipeline
from genlab.diffusion.preconditioning import EDM
from genlab.errors import ConfigError
from genlab.networks import SongUNet

Pipe = Any


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    network = SongUNet(4, 2, 2, label_dim=3, model_channels=8, channel_mult=[1], num_blocks=1,
                       attn_resolutions=[])  # fmt: skip
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("latent") / "model"
    DiffusionGenerator(network.eval(), EDM()).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Pipe:
    pipe: Pipe = GenLabPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Pipe, kind: str) -> Any:
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 1)]
    return pipe([0, 2], 3, generator=seeds, output_type=kind).images


def test_latents_with_and_without_an_autoencoder(model: Path) -> None:
    vae: Any = tiny_kl().model
    plain, whole = load(model), load(model, vae=vae)
    latents = draw(plain, "latent")
    assert (latents.dtype, tuple(latents.shape)) == (torch.float32, (2, 2, 4, 4))
    assert torch.equal(latents, draw(whole, "latent"))
    assert torch.equal(latents, plain.as_generator().sample([3, 1], [0, 2], num_steps=3))
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(draw(whole, "pt"), (decoded / 2 + 0.5).clamp(0, 1))
    assert np.asarray(draw(whole, "pil")[0]).shape == (8, 8)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_images_of_latents_are_refused(model: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"these are latents: .* vae=FOLDER"):
        draw(load(model), kind)


def test_a_model_of_images_has_no_latents(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="draws images themselves; take pt, np or pil"):
        draw(load(tiny_model), "latent")


def test_how_an_autoencoder_is_given(model: Path, tmp_path: Path) -> None:
    tiny_kl().save_pretrained(tmp_path / "vae")
    expected = draw(load(model, vae=tiny_kl().model), "pt")
    for options in ({"autoencoder": tiny_kl().model}, {"vae": tmp_path / "vae"},
                    {"vae": tmp_path / "vae", "torch_dtype": torch.float32}):  # fmt: skip
        assert torch.equal(draw(load(model, **options), "pt"), expected)
    pipe = load(model, vae=tiny_kl().model)
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(draw(load(tmp_path / "saved"), "pt"), expected)
    # Another one in its place, and none.
    other = load(tmp_path / "saved", vae=tiny_kl(seed=8).model)
    assert not torch.equal(draw(other, "pt"), expected)
    none = load(tmp_path / "saved", vae=None)
    assert torch.equal(draw(none, "latent"), draw(pipe, "latent"))
    assert none.as_generator().draws_latents


def test_what_does_not_fit_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="latents of 4 channels, these have 2"):
        load(model, vae=tiny_deterministic().model)
    with pytest.raises(ConfigError, match="vae and autoencoder are the same"):
        load(model, vae=tiny_kl().model, autoencoder=None)
