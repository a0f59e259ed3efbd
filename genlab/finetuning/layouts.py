"""The layout of any network that can be fine-tuned: GenLab's tell theirs, others are described."""

from torch import nn

from genlab.errors import ConfigError
from genlab.networks.base import Network
from genlab.networks.layout import Layout
from genlab.registry import class_path


def layout_of(network: nn.Module) -> Layout:
    """What a network is made of.

    Raises:
        ConfigError: nobody has written it down for networks of this class.
    """
    if isinstance(network, Network):
        return network.layout()
    raise ConfigError(
        f"{class_path(type(network))} does not tell its parts, so no method can fine-tune it"
    )
