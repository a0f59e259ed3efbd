"""The part of a network that a run changes, which it averages, saves and restores."""

from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.base import Network


def changing_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The part of a network's state dict that training changes.

    That is all of it, unless some parameters are frozen: then what trains, and the buffers that the
    network's layout calls statistics. The rest comes from whatever the run began from.

    Returns:
        Name in the state dict -> tensor, shared with the network.
    """
    state: dict[str, Tensor] = network.state_dict()
    parameters = dict(network.named_parameters(remove_duplicate=False))
    trains = {name for name, parameter in parameters.items() if parameter.requires_grad}
    if len(trains) in (0, len(parameters)):
        return state
    kept = trains | _statistics(network)
    return {name: tensor for name, tensor in state.items() if name in kept}


def _statistics(network: nn.Module) -> set[str]:
    try:
        if isinstance(network, Network):
            return set(network.layout().statistics)
    except ConfigError:
        pass
    # A network that does not tell which of its buffers move keeps them all.
    return {name for name, _ in network.named_buffers()}
