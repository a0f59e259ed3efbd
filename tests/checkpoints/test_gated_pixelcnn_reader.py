"""Files of Gated PixelCNNs: what is read off the shapes, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from state_changes import State, instead, without

import genlab
from genlab.checkpoints.conversion import guess_format
from genlab.errors import CheckpointError, ConfigError
from genlab.generators import AutoregressiveGenerator
from genlab.networks.gated_pixelcnn import GatedPixelCNN


def official(num_levels: int = 12) -> State:
    """A state dict as the official class has it: the first layer's masked weights included."""
    network = GatedPixelCNN(8, 1, 3, num_levels, channels=4, num_layers=2, head_channels=6)
    state = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    vertical, horizontal = (f"layers.0.{stack}_stack.weight" for stack in ("vert", "horiz"))
    state[vertical] = torch.cat([state[vertical], torch.randn(8, 4, 1, 7)], dim=2)
    state[horizontal] = torch.cat([state[horizontal], torch.randn(8, 4, 1, 1)], dim=3)
    return state


def test_shapes_tell_the_architecture(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "prior.pt")
    assert guess_format(tmp_path / "prior.pt") == "gated-pixelcnn"
    generator = genlab.convert(tmp_path / "prior.pt")
    assert isinstance(generator, AutoregressiveGenerator)
    assert (generator.image_shape, generator.num_classes) == ((1, 8, 8), 3)
    made: Any = generator.network.config
    told = {key: made[key] for key in ("num_levels", "channels", "num_layers", "head_channels")}
    assert told == {"num_levels": 12, "channels": 4, "num_layers": 2, "head_channels": 6}
    assert (made["first_kernel"], made["kernel"]) == (7, 3)
    assert not generator.has_null_class


def test_a_config_says_the_size_and_may_repeat_the_shapes(tmp_path: Path) -> None:
    save_file(official(), tmp_path / "prior.safetensors")
    config = {"input_dim": 12, "dim": 4, "n_layers": 2, "n_classes": 3, "shape": [5, 5]}
    assert genlab.convert(tmp_path / "prior.safetensors", config=config).image_shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 5}, "dim of GatedPixelCNN is 5 in the config but 4 in the file"),
        ({"dims": 4}, "GatedPixelCNN has no argument 'dims'; did you mean 'dim'"),
        ({"shape": [8, 9]}, r"square images only, got shape=\[8, 9\]"),
        ({"shape": 8}, "shape of GatedPixelCNN must be a list, got 8"),
        ({"shape": [8, 10**9]}, r"each a whole number in 1 \.\.\. 8192"),
    ],
)
def test_wrong_configs_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "prior.pt")
    with pytest.raises(ConfigError, match=message):
        genlab.convert(tmp_path / "prior.pt", config=config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("layers.1.horiz_resid.bias"), "missing: layers.1.horiz_resid.bias"),
        (instead("extra", torch.zeros(1)), "unexpected: extra"),
        (instead("layers.5.vert_stack.bias", torch.zeros(8)), "does not fit"),
        (
            instead("output_conv.2.bias", torch.zeros(5)),
            r"output_conv.2.bias is \[5\] where \[12\] is needed",
        ),
        (without("embedding.weight"), "no Gated PixelCNN of pytorch-vqvae"),
        (instead("embedding.weight", torch.zeros(12)), "no Gated PixelCNN of pytorch-vqvae"),
        (instead("layers.0.vert_stack.weight", torch.zeros(8, 4, 4, 6)), "kernels must be odd"),
        # A claim of petabytes, in a file of kilobytes.
        (
            instead("embedding.weight", torch.zeros(1, 1).expand(2**20, 2**20)),
            "not hold all numbers",
        ),
    ],
)
def test_broken_files_are_refused(
    damage: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    torch.save(damage(official()), tmp_path / "prior.pt")
    with pytest.raises(CheckpointError, match=message):
        genlab.convert(tmp_path / "prior.pt", format="gated-pixelcnn")


def test_other_formats_are_not_claimed(tmp_path: Path) -> None:
    save_file({"model.map_layer0.weight": torch.zeros(1)}, tmp_path / "edm.safetensors")
    assert guess_format(tmp_path / "edm.safetensors") == "edm"
