"""What a network is told and says in each call of the denoiser around it."""

from threading import Lock
from typing import Any, NamedTuple

import torch
from golden_cases import MismatchError
from torch import Tensor, nn
from watching import Watching

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction


def shared(told: Tensor) -> Tensor:
    """The number that all rows were told, (1,)."""
    if not bool((told == told[0]).all()):
        raise MismatchError(f"rows that share a noise level were told {told.tolist()}")
    return told[:1]


class Call(NamedTuple):
    """One call of a denoiser, as its network sees it.

    Attributes:
        told: the noise level in the network's own terms, of each row, (B,).
        said: the network's output, (B, ...).
    """

    told: Tensor
    said: Tensor


class Notes:
    """Notes what a network is told and says, until `remove`.

    A batch may be shared out over threads (`genlab.compute.by_rows`). One call of the denoiser is
    then several of the network, in any order: their number and their order say nothing.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parts: list[tuple[int, Tensor, Tensor]] = []
        self._lock = Lock()
        self._hook = network.register_forward_hook(self._note)

    def _note(self, network: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        x, c_noise = args[:2]
        told = c_noise.reshape(-1).expand(len(x))
        with self._lock:
            # Parts are slices of one batch, so their addresses tell which rows they are.
            self._parts.append((x.data_ptr(), told, out))

    def take(self) -> Call:
        """The call of the denoiser that has just ended, in the order of its rows."""
        with self._lock:
            parts = sorted(self._parts, key=lambda part: part[0])
            self._parts.clear()
        _, told, said = zip(*parts, strict=True)
        return Call(torch.cat(told), torch.cat(said))

    def remove(self) -> None:
        self._hook.remove()


class Told(Watching):
    """A denoiser that notes its calls; the network is the one in it."""

    def __init__(self, inner: Denoiser, network: nn.Module) -> None:
        super().__init__(inner)
        self.notes = Notes(network)
        self.calls: list[Call] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        x0 = self.inner(x, sigma, condition)
        self.calls.append(self.notes.take())
        return x0

    def predict(self, x: Tensor, sigma: Tensor, condition: Condition) -> Prediction:
        said = self.inner.predict(x, sigma, condition)
        self.calls.append(self.notes.take())
        return said

    def times(self, steps: int) -> Tensor:
        """What each row was told in all calls of a step, (steps, rows of its calls)."""
        return torch.cat([call.told for call in self.calls]).reshape(steps, -1)

    def shared_times(self, steps: int) -> Tensor:
        """What all rows of all calls of a step were told, (steps,)."""
        return torch.cat([shared(row) for row in self.times(steps)])
