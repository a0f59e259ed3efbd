"""A DiT at another resolution: positions, what is shared, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_autoencoder import tiny_kl
from torch import Tensor

import genlab
from genlab.errors import ConfigError
from genlab.finetuning.class_tables.classes import with_classes
from genlab.finetuning.class_tables.resolution import with_resolution
from genlab.generators import DiffusionGenerator
from genlab.generators.families import read_generator
from genlab.networks import DiT


@pytest.fixture(scope="module")
def base() -> DiffusionGenerator:
    generator = genlab.load("dit-fmnist")
    assert isinstance(generator, DiffusionGenerator)
    return generator


def position_features(network: DiT, row: float, column: float) -> Tensor:
    """Sines and cosines of one position, column first."""
    quarter = network.hidden_size // 4
    frequencies = 10000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    phases = [place * frequencies for place in (column, row)]
    return torch.cat([f(phase) for phase in phases for f in (torch.sin, torch.cos)])


def test_positions_keep_to_the_trained_range(base: DiffusionGenerator) -> None:
    made = with_resolution(base, 64)
    assert made.image_shape == (1, 64, 64)
    large, small = made.network, base.network
    assert isinstance(large, DiT)
    assert isinstance(small, DiT)
    old, new, grid = small.pos_embed, large.pos_embed, large.grid
    assert isinstance(new, Tensor)
    assert grid == 2 * small.grid
    for row, column in ((0, 0), (3, 1), (grid - 1, 6)):
        expected = position_features(large, row / 2, column / 2).float()
        torch.testing.assert_close(new[0, row * grid + column], expected, rtol=0, atol=1e-6)
    every_other = new.unflatten(1, (grid, grid))[:, ::2, ::2].flatten(1, 2)
    torch.testing.assert_close(every_other, old, rtol=0, atol=1e-6)


def test_all_weights_are_shared_and_the_base_stays(base: DiffusionGenerator) -> None:
    before = base.weights_sha256()
    made = with_resolution(base, 64)
    old = base.network.state_dict()
    for name, tensor in made.network.state_dict().items():
        assert (tensor.data_ptr() == old[name].data_ptr()) == (name != "pos_embed")
    assert base.weights_sha256() == before
    assert (made.class_names, made.sampler.config) == (base.class_names, base.sampler.config)
    assert made.has_null_class


def test_there_and_back_is_the_same(base: DiffusionGenerator) -> None:
    for made in (with_resolution(base, 32), with_resolution(with_resolution(base, 64), 32)):
        config: Any = made.network.config
        assert config["position_resolution"] == 32
        few = {"schedule": {"num_steps": 2}}
        torch.testing.assert_close(
            made.sample([1], [7], few), base.sample([1], [7], few), rtol=0, atol=1e-4
        )


def test_a_larger_model_is_saved_and_samples_with_guidance(
    base: DiffusionGenerator, tmp_path: Path
) -> None:
    made = with_classes(with_resolution(base, 48), ["cat", "dog"])
    few = {"schedule": {"num_steps": 2}}
    drawn = made.sample([1], [1], few)
    assert drawn.shape == (1, 1, 48, 48)
    made.save_pretrained(tmp_path / "large")
    again = read_generator(tmp_path / "large")
    assert again.image_shape == (1, 48, 48)
    assert torch.equal(again.sample([1], [1], few), drawn)


def test_a_latent_model_is_given_the_size_of_images() -> None:
    autoencoder = tiny_kl()
    channels = autoencoder.latent_channels
    network = DiT(8, channels, channels, 3, patch_size=2, hidden_size=16, depth=1, num_heads=2)
    other: Any = genlab.load("dit-fmnist")
    base = DiffusionGenerator(network, other.preconditioning, autoencoder=autoencoder)
    size, factor = base.image_shape[1], autoencoder.factor
    made = with_resolution(base, 2 * size)
    assert made.state_shape == (channels, 16, 16)
    assert made.image_shape == (base.image_shape[0], 2 * size, 2 * size)
    assert made.sample([1], [0], {"schedule": {"num_steps": 2}}).shape[2:] == (2 * size, 2 * size)
    with pytest.raises(ConfigError, match=f"multiple of {factor}"):
        with_resolution(base, size + 1)
    with pytest.raises(ConfigError, match=f"choose a multiple of {2 * factor}"):
        with_resolution(base, size + factor)


def test_sizes_that_patches_do_not_tile_are_refused(base: DiffusionGenerator) -> None:
    with pytest.raises(ConfigError, match="cannot be cut into the network's patches"):
        with_resolution(base, 33)
    for size in (0, -32, True):
        with pytest.raises(ConfigError, match="whole number of pixels above 0"):
            with_resolution(base, size)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("edm-fmnist", "SongUNet cannot change its resolution: its attention layers"),
        ("biggan-fmnist", "BigGANGenerator cannot .* it doubles its first features"),
        ("pixelcnnpp-fmnist", "PixelCNNPP cannot .* pixel after pixel"),
    ],
)
def test_other_networks_say_why_they_cannot(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        with_resolution(genlab.load(name), 64)
