"""Files of PixelCNN++: what is read off the shapes, and what is refused."""

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
from genlab.networks.pixelcnnpp import PixelCNNPP


def official(channels: int = 3, num_mixtures: int = 2) -> State:
    network = PixelCNNPP(8, channels, 0, num_blocks=2, num_filters=4, num_mixtures=num_mixtures)
    return {name: torch.randn_like(value) for name, value in network.state_dict().items()}


def read(file: Path, config: dict[str, Any] | None = None) -> AutoregressiveGenerator:
    generator = genlab.convert(file, config=config)
    assert isinstance(generator, AutoregressiveGenerator)
    return generator


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_shapes_tell_the_architecture(channels: int, size: int, tmp_path: Path) -> None:
    torch.save(official(channels), tmp_path / "pcnn.pth")
    assert guess_format(tmp_path / "pcnn.pth") == "pixelcnn++"
    generator = read(tmp_path / "pcnn.pth")
    assert (generator.image_shape, generator.num_classes) == ((channels, size, size), 0)
    made: Any = generator.network.config
    assert (made["num_blocks"], made["num_filters"], made["num_mixtures"]) == (2, 4, 2)


def test_a_config_says_the_size_and_may_repeat_the_shapes(tmp_path: Path) -> None:
    save_file(official(), tmp_path / "pcnn.safetensors")
    config = {
        "nr_resnet": 2, "nr_filters": 4, "nr_logistic_mix": 2, "input_channels": 3,
        "resnet_nonlinearity": "concat_elu", "obs": [3, 8, 8],
    }  # fmt: skip
    generator = read(tmp_path / "pcnn.safetensors", config)
    assert generator.image_shape == (3, 8, 8)
    images = generator.sample([1, 2])
    assert images.isfinite().all()


def test_weights_saved_from_data_parallel_training_are_the_same(tmp_path: Path) -> None:
    state = official()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pt")
    a, b = (read(tmp_path / f"{name}.pt") for name in ("plain", "parallel"))
    assert a.weights_sha256() == b.weights_sha256()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"nr_filters": 5}, "nr_filters of PixelCNN is 5 in the config but 4 in the file"),
        ({"nr_filter": 4}, "PixelCNN has no argument 'nr_filter'; did you mean 'nr_filters'"),
        ({"resnet_nonlinearity": "elu"}, "must be one of concat_elu, got 'elu'"),
        ({"obs": [1, 8, 8]}, r"must be \(3, N, N\) for this file"),
        ({"obs": [3, 8, 12]}, r"must be \(3, N, N\) for this file"),
        ({"obs": [3, 6, 6]}, r"N a multiple of 4, got \[3, 6, 6\]"),
        ({"obs": 8}, "obs of PixelCNN must be a list, got 8"),
    ],
)
def test_wrong_configs_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "pcnn.pt")
    with pytest.raises(ConfigError, match=message):
        genlab.convert(tmp_path / "pcnn.pt", config=config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("u_init.conv.bias"), "missing: u_init.conv.bias"),
        (without("u_init.conv.weight_v"), "is no PixelCNN"),
        (instead("u_init.conv.weight_v", torch.zeros(4)), "is no PixelCNN"),
        (instead("nin_out.lin_a.bias", torch.tensor(0.0)), "is no PixelCNN"),
        (instead("extra", torch.zeros(1)), "unexpected: extra"),
        (instead("u_init.conv.weight_v", torch.zeros(4, 3, 2, 3)), "cannot be built: a mixture"),
        (instead("nin_out.lin_a.bias", torch.zeros(21)), "nin_out.lin_a.bias is"),
        (instead("nin_out.lin_a.bias", torch.zeros(9)), "num_mixtures must be made of whole"),
        (
            # A claim of millions of filters ends before anything of that size is made.
            instead("u_init.conv.weight_v", torch.zeros(1, 1, 1, 1).expand(2_000_000, 4, 2, 3)),
            "does not hold all numbers",
        ),
        (
            instead("up_layers.0.u_stream.9.conv_out.conv.bias", torch.zeros(8)),
            "does not fit",
        ),
    ],
)
def test_broken_files_are_refused(
    damage: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    torch.save(damage(official()), tmp_path / "pcnn.pt")
    with pytest.raises(CheckpointError, match=message):
        genlab.convert(tmp_path / "pcnn.pt", format="pixelcnn++")


def test_saving_and_loading_keeps_every_bit(tmp_path: Path) -> None:
    torch.save(official(1), tmp_path / "pcnn.pt")
    generator = read(tmp_path / "pcnn.pt", {"obs": [1, 8, 8]})
    generator.save_pretrained(tmp_path / "model")
    again = AutoregressiveGenerator.from_pretrained(tmp_path / "model")
    assert torch.equal(again.sample(range(3)), generator.sample(range(3)))
