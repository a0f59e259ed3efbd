"""Reader of Gated PixelCNNs over codes, as ritheshkumar95/pytorch-vqvae saves them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from genlab.checkpoints.companions import OTHER_PIXELCNNS
from genlab.checkpoints.readers.base import Config
from genlab.checkpoints.readers.options import (
    Option,
    check_claims,
    integer,
    refuse_unknown,
    several,
    values_of,
)
from genlab.checkpoints.weights import StateDict, build_network, mentions, read_state_dict
from genlab.errors import CheckpointError, ConfigError
from genlab.generators.autoregressive import AutoregressiveGenerator
from genlab.networks.gated_pixelcnn import GatedPixelCNN

# The constructor's arguments, which the shapes show as well; and an argument of `generate` alone.
_CLAIMS = {
    "input_dim": "num_levels",
    "dim": "channels",
    "n_layers": "num_layers",
    "n_classes": "label_dim",
}
_SHAPE = Option([8, 8], several(integer(1, 8192), longest=2, shortest=2))


class GatedPixelCNNReader:
    """Reads the network; shapes tell all of it but the size of its images.

    The size is the argument ``shape`` of the official ``generate``, 8x8 unless the config says
    otherwise. Officially a file's first layer holds weights that every forward pass zeroes; they
    are left out.
    """

    def recognises(self, source: Path, config: Config | None) -> bool:
        """Tensors under the names of its first layer."""
        return mentions(source, "layers.0.class_cond_embedding.weight")

    def read(self, source: Path, config: Config | None) -> AutoregressiveGenerator:
        """Read a network; see `genlab.checkpoints.readers.base.Reader`."""
        config = config or {}
        refuse_unknown("GatedPixelCNN", config, [*_CLAIMS, "shape"])
        height, width = values_of("GatedPixelCNN", {"shape": _SHAPE}, config)["shape"]
        if height != width:
            raise ConfigError(
                f"GatedPixelCNN is defined for square images only, got shape={[height, width]}"
            )
        state = read_state_dict(source)
        arguments = _arguments(state, str(source))
        check_claims("GatedPixelCNN", _CLAIMS, config, arguments)
        network = build_network(
            GatedPixelCNN,
            {"img_resolution": height, **arguments},
            _without_masked(state),
            f"{source} (GatedPixelCNN)",
        )
        return AutoregressiveGenerator(network)


def _arguments(state: StateDict, where: str) -> dict[str, int]:
    """The constructor's arguments, read off the shapes."""
    layers = {name.split(".")[1] for name in state if name.startswith("layers.")}
    try:
        num_levels, channels = state["embedding.weight"].shape
        first_kernel = state["layers.0.vert_stack.weight"].shape[3]
        later = state.get("layers.1.vert_stack.weight")
        return {
            "label_dim": state["layers.0.class_cond_embedding.weight"].shape[0],
            "num_levels": num_levels,
            "channels": channels,
            "num_layers": len(layers),
            "first_kernel": first_kernel,
            "kernel": first_kernel if later is None else later.shape[3],
            "head_channels": state["output_conv.0.weight"].shape[0],
        }
    except (LookupError, ValueError) as error:
        raise CheckpointError(
            f"{where} is no Gated PixelCNN of pytorch-vqvae: its tensors have other names or "
            f"shapes; {OTHER_PIXELCNNS}"
        ) from error


def _without_masked(state: StateDict) -> dict[str, Tensor]:
    """The weights without those of the first layer that would see the pixel itself."""
    last: dict[str, Any] = {
        "layers.0.vert_stack.weight": (..., slice(-1), slice(None)),
        "layers.0.horiz_stack.weight": (..., slice(-1)),
    }
    return {name: value[last[name]] if name in last else value for name, value in state.items()}
