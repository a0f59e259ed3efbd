"""Ways to spoil a state dict."""

from collections.abc import Callable

from torch import Tensor

State = dict[str, Tensor]


def without(name: str) -> Callable[[State], State]:
    """The same without one tensor."""
    return lambda state: {key: value for key, value in state.items() if key != name}


def instead(name: str, value: Tensor) -> Callable[[State], State]:
    """The same with another tensor under a name."""
    return lambda state: {**state, name: value}
