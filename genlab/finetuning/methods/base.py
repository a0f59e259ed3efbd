"""The contract of a fine-tuning method: it prepares a network, merges it, lists what is saved."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from genlab.errors import CheckpointError, ConfigError
from genlab.finetuning.layouts import layout_of
from genlab.finetuning.registries import METHODS as METHODS
from genlab.networks.layout import Layout


class Method(ABC):
    """A way to fine-tune. Subclasses are frozen dataclasses whose fields are the options.

    A method changes the network that it is given: it adds what it adds, and chooses what trains.
    It allocates nothing of the network anew but what trains or is added, so it works on the meta
    device, too.
    """

    @abstractmethod
    def prepare(self, network: nn.Module) -> list[str]:
        """Add what the method adds, and let only what trains have gradients.

        The network's output stays bit for bit what it was, where the method can do that.

        Args:
            network: a plain one, of `layout_of`'s kinds.

        Returns:
            The names of the parameters that train, in the network's order.

        Raises:
            ConfigError: the method has nothing to train in this network, or an option names a part
                that it has not.
        """

    @abstractmethod
    def merge(self, network: nn.Module) -> nn.Module:
        """A plain network again: the architecture and the state-dict keys from before `prepare`.

        Args:
            network: prepared, perhaps trained; it is changed.

        Returns:
            The same network, whose output differs by rounding only.

        Raises:
            ConfigError: what the method adds cannot become part of the weights.
        """

    def notes(self, network: nn.Module) -> list[str]:
        """What `prepare` did that is not obvious, a sentence each, shown when a run starts.

        Args:
            network: prepared.
        """
        return []

    def saved(self, network: nn.Module) -> dict[str, Tensor]:
        """The stored tensors of a prepared network: what trains, and statistics that change.

        Returns:
            Name -> tensor, shared with the network.
        """
        state = network.state_dict(keep_vars=True)
        trained = {name: value for name, value in state.items() if value.requires_grad}
        statistics = {name: state[name] for name in layout_of(network).statistics}
        return {name: value.detach() for name, value in {**trained, **statistics}.items()}

    @torch.no_grad()
    def load(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that `saved` gave, all of them and no others.

        Raises:
            CheckpointError: names a tensor that is missing, not of this method, or of another
                shape.
        """
        own = self.saved(network)
        check_same(own, tensors)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def adapter_config(self, network: nn.Module, base: str | None) -> dict[str, Any] | None:
        """What ``adapter_config.json`` holds, where another library says so.

        Args:
            network: prepared.
            base: name of the model that it was before.

        Returns:
            None: the file is GenLab's own.
        """
        return None


def check_same(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of other names or shapes than a prepared network has.

    Raises:
        CheckpointError: see `Method.load`.
    """
    for name in [*own, *tensors]:
        if name not in tensors or name not in own:
            where = "lacks" if name in own else "holds, beside what this method trains,"
            raise CheckpointError(f"the adapter {where} {name}; it is of another method or model")
        if own[name].shape != tensors[name].shape:
            raise CheckpointError(
                f"the adapter's {name} has the shape {tuple(tensors[name].shape)}, the model's "
                f"{tuple(own[name].shape)}; it was trained on another model"
            )


class Selection(Method):
    """A method that adds nothing and only chooses what trains: there is nothing to merge."""

    @abstractmethod
    def chosen(self, network: nn.Module, layout: Layout) -> Iterable[str]:
        """Names of the parameters that train, in any order.

        Raises:
            ConfigError: see `Method.prepare`.
        """

    @override
    def prepare(self, network: nn.Module) -> list[str]:
        return train_only(network, self.chosen(network, layout_of(network)), type(self).__name__)

    @override
    def merge(self, network: nn.Module) -> nn.Module:
        """Nothing was added, so the weights stay as they are."""
        return unfreeze(network)


def unfreeze(network: nn.Module) -> nn.Module:
    """Let all parameters have gradients again, but those that no training changes."""
    fixed = set(layout_of(network).fixed)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in fixed)
    return network


def train_only(network: nn.Module, names: Iterable[str], method: str) -> list[str]:
    """Freeze a network but for some parameters.

    Args:
        network: whose parameters are meant.
        names: what trains; repeated ones count once.
        method: for the message.

    Returns:
        The names in the network's order.

    Raises:
        ConfigError: there are none.
    """
    remaining = set(names)
    trained = []
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in remaining)
        if name in remaining:
            trained.append(name)
            remaining.remove(name)
    assert not remaining, f"{sorted(remaining)[0]} is no parameter of {type(network).__name__}"
    if not trained:
        raise ConfigError(
            f"{method} changes nothing in {type(network).__name__}, which has no parameter of that "
            "kind; choose another method"
        )
    return trained


def check_blocks(blocks: object) -> None:
    """Refuse what names no blocks of any network; see `choose_blocks`.

    Raises:
        ConfigError: tells how to write them.
    """
    named = isinstance(blocks, str) and blocks in ("all", "half", "none")
    listed = isinstance(blocks, Sequence) and not isinstance(blocks, str)
    if not named and not (listed and all(type(number) is int for number in blocks)):  # type: ignore[attr-defined]  # a sequence
        raise ConfigError(
            f"blocks={blocks!r}: write all, half, none, or a list of numbers such as [0,1,2]"
        )


def choose_blocks(blocks: str | Sequence[int], count: int) -> list[int]:
    """Read which blocks are meant.

    Args:
        blocks: "all", "half" (the first half, rounded up), "none", or numbers from 0; negative ones
            count from the end.
        count: how many blocks the network has.

    Raises:
        ConfigError: names a block that does not exist, or the value that names none.
    """
    check_blocks(blocks)
    if isinstance(blocks, str):
        return list(range({"all": count, "half": -(-count // 2), "none": 0}[blocks]))
    for number in blocks:
        if not -count <= number < count:
            raise ConfigError(
                f"there is no block {number}: the network has {count}, 0 ... {count - 1}"
            )
    return sorted({number % count for number in blocks})


def parent_of(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or a module, and the name that it has there."""
    path, _, last = name.rpartition(".")
    return network.get_submodule(path), last
