"""Reader of PixelCNN++ networks as pclucas14/pixel-cnn-pp saves them."""

from pathlib import Path
from typing import Any

from genlab.checkpoints.companions import OTHER_PIXELCNNS
from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.readers.options import (
    Option,
    check_claims,
    integer,
    one_of,
    refuse_unknown,
    several,
    values_of,
)
from genlab.checkpoints.weights import StateDict, build_network, mentions, read_state_dict
from genlab.errors import CheckpointError, ConfigError
from genlab.generators.autoregressive import AutoregressiveGenerator
from genlab.networks.pixelcnnpp import PixelCNNPP

# The constructor's arguments, which the shapes tell as well.
_CLAIMS = {
    "nr_resnet": "num_blocks",
    "nr_filters": "num_filters",
    "nr_logistic_mix": "num_mixtures",
    "input_channels": "in_channels",
}
_NONLINEARITY = {"resnet_nonlinearity": Option("concat_elu", one_of("concat_elu"))}
_OBS = several(integer(1, 8192), longest=3, shortest=3)

# What the official training script knows: MNIST and CIFAR-10.
_SIZES = {1: 28, 3: 32}


class PixelCNNPPReader:
    """Reads the network; shapes tell all of it but the size of its images.

    The size is ``obs`` of the official training script, (channels, height, width): 28x28 for one
    channel and 32x32 for three unless the config says otherwise.
    """

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Tensors under the names of its first layer."""
        return mentions(source, "ul_init.0.conv.weight_v")

    def read(self, source: Path, config: Config | None) -> AutoregressiveGenerator:
        """Read a network; see `genlab.checkpoints.readers.base.Reader`."""
        config = config or {}
        refuse_unknown("PixelCNN", config, [*_CLAIMS, *_NONLINEARITY, "obs"])
        values_of("PixelCNN", _NONLINEARITY, config)
        state = read_state_dict(source)
        arguments = _arguments(state, str(source))
        check_claims("PixelCNN", _CLAIMS, config, arguments)
        network = build_network(
            PixelCNNPP,
            {"img_resolution": _resolution(config, arguments["in_channels"]), **arguments},
            state,
            f"{source} (PixelCNN)",
        )
        return AutoregressiveGenerator(network)


def _arguments(state: StateDict, where: str) -> dict[str, int]:
    """The constructor's arguments, read off the shapes."""
    blocks = {name.split(".")[3] for name in state if name.startswith("up_layers.0.u_stream.")}
    try:
        num_filters, seen = state["u_init.conv.weight_v"].shape[:2]
        num_params = len(state["nin_out.lin_a.bias"])
    except (LookupError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{where} is no PixelCNN++ of pixel-cnn-pp: its tensors have other names or shapes; "
            f"{OTHER_PIXELCNNS}"
        ) from error
    return {
        "in_channels": seen - 1,
        "num_blocks": len(blocks),
        "num_filters": num_filters,
        "num_mixtures": num_params // (3 if seen == 2 else 10),
    }


def _resolution(config: Config, channels: int) -> int:
    size = _SIZES.get(channels, _SIZES[3])
    options: dict[str, Any] = {"obs": Option([channels, size, size], _OBS)}
    obs_channels, height, width = values_of("PixelCNN", options, config)["obs"]
    if obs_channels != channels or height != width or height % 4:
        raise ConfigError(
            f"obs of PixelCNN must be ({channels}, N, N) for this file, N a multiple of 4, got "
            f"{[obs_channels, height, width]}"
        )
    return int(height)
