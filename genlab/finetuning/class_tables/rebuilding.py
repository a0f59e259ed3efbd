"""A network built again with other constructor arguments, around the same tensors."""

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.networks.base import Network
from genlab.saving.models import own_config
from genlab.training.loop.trained import changing_tensors

N = TypeVar("N", bound=Network)


def rebuild(network: N, *, new: Collection[str] = (), **changes: Any) -> N:
    """Build a network again with other arguments; it shares all tensors that it can.

    No number is copied, and nothing is allocated. Parameters are objects of their own around the
    same memory, so that freezing one network leaves the other as it is.

    Args:
        network: a plain one; it is not changed.
        new: names of parameters and buffers that are not shared.
        changes: constructor arguments that take the place of its own.

    Returns:
        A network in the same mode (training or evaluation). What is ``new``, and class tables that
        ``network`` lacks, are on the meta device: to be filled by the caller.

    Raises:
        ConfigError: the arguments make no network, or ``network`` is not plain any more.
    """
    with torch.device("meta"):
        built = type(network)(**{**own_config(network), **changes})
    _check_plain(network, built)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for path, module in built.named_modules():
        for name, parameter in module._parameters.items():
            shared = _shared(path, name, parameter, tensors, new)
            if shared is not None:
                module._parameters[name] = nn.Parameter(shared.detach(), shared.requires_grad)
        for name, buffer in module._buffers.items():
            shared = _shared(path, name, buffer, tensors, new)
            if shared is not None:
                module._buffers[name] = shared
    return built.train(network.training)


def own_tensors(network: nn.Module, names: Iterable[str]) -> None:
    """Give a network that shares its tensors copies of those that training changes.

    Args:
        network: prepared.
        names: of the parameters that train; statistics are added.
    """
    changing = {*names, *changing_tensors(network)}
    for name, parameter in network.named_parameters():
        if name in changing:
            parameter.data = parameter.data.clone()
    for path, module in network.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and (f"{path}.{name}" if path else name) in changing:
                module._buffers[name] = buffer.clone()


def _shared(
    path: str,
    name: str,
    tensor: Tensor | None,
    tensors: dict[str, Tensor],
    new: Collection[str],
) -> Tensor | None:
    whole = f"{path}.{name}" if path else name
    return None if tensor is None or whole in new else tensors.get(whole)


def _check_plain(network: Network, built: Network) -> None:
    """Refuse a network whose tensors, but for class tables, are not those of its config."""
    tables = {f"{table.layer}." for each in (network, built) for table in layout_of(each).tables}
    differ = network.state_dict().keys() ^ built.state_dict().keys()
    odd = sorted(name for name in differ if not name.startswith(tuple(tables)))
    if odd:
        raise ConfigError(
            f"this {type(network).__name__} was changed since it was built ({odd[0]}), so it "
            "cannot be built with other settings; merge its adapter or take the plain model"
        )
