"""Detect that a GAN's training has collapsed."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genlab.training.objectives.base import Trouble


class CollapseWarning(UserWarning):
    """The discriminator wins."""


@dataclass
class CollapseWatch:
    """Ends a run whose discriminator has won for long: its generator no longer learns.

    Half-way there it warns.

    Args:
        loss: of the discriminator; below it, it has won.
        even: its loss where it cannot tell made images from real ones.
        patience_kimg: for how long, in thousands of images.
    """

    loss: float
    even: float
    patience_kimg: float

    def __post_init__(self) -> None:
        self._since: float | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """Since when the loss has been low, as JSON values."""
        return {"since": self._since, "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._since, self._warned = state["since"], state["warned"]

    def __call__(self, kimg: float, means: Mapping[str, float]) -> Trouble | None:
        """End the run after ``patience_kimg`` of low loss; warn after half of that."""
        loss = means["discriminator"]
        if loss >= self.loss:
            self._since, self._warned = None, False
            return None
        self._since = kimg if self._since is None else self._since
        length = kimg - self._since
        problem = (
            f"the discriminator has won for {length:.3g} thousand images: its loss is {loss:.2g}, "
            f"where {self.even:.3g} would be even"
        )
        if length >= self.patience_kimg:
            cure = (
                "switch objective.augment on, lower optimizer.networks.discriminator.lr or "
                "objective.discriminator_steps"
            )
            return Trouble(problem=problem, cure=cure, kimg=self._since)
        if length >= self.patience_kimg / 2 and not self._warned:
            self._warned = True
            warnings.warn(
                f"{problem}; the run ends if that lasts {self.patience_kimg:g} thousand images",
                CollapseWarning,
                stacklevel=2,
            )
        return None
