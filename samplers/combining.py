"""Which models may be combined in one run: guides, classifiers of noise levels, stitched models.

Every model is ``D(x; sigma)`` in the unscaled frame, so preconditionings may differ. What must
agree is what ``x`` is, which classes there are, and that each model is asked at noise levels only
that it knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError

TOLERANCE = 1e-6
"""By what share a noise level may lie outside of a model's range: rounding, no more."""


@dataclass(frozen=True, kw_only=True)
class DataSpace:
    """What a diffusion model denoises.

    Attributes:
        shape: (C, H, W) of its states, images in [-1, 1] or latents.
        autoencoder: of a latent model the hash of its autoencoder, scale included; else None.
    """

    shape: tuple[int, int, int]
    autoencoder: str | None = None

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        if self.autoencoder is None:
            return f"images of shape {size}"
        return f"latents of shape {size} of the autoencoder {self.autoencoder[:8]}"


def check_combinable(model: Any, other: Any, what: str) -> None:
    """Refuse a second model that denoises something else than the first.

    Args:
        model: the one that is sampled.
        other: the second one. Where either has no ``data_space`` (a denoiser by itself) nothing can
            be said.
        what: the second one's part in the run, for messages: ``the guide``.

    Raises:
        ConfigError: shapes or autoencoders differ.
    """
    ours, theirs = (getattr(each, "data_space", None) for each in (model, other))
    if ours is not None and theirs is not None and ours != theirs:
        raise ConfigError(
            f"{what} denoises {theirs}, and the model {ours}; take one that was trained on the same"
            " data"
        )


def check_classes(model: Denoiser, other: Denoiser, what: str) -> None:
    """Refuse a second model that knows other classes; one without any is asked without them.

    Raises:
        ConfigError: the numbers of classes differ.
    """
    if other.num_classes not in (0, model.num_classes):
        raise ConfigError(
            f"{what} knows {other.num_classes} classes and the model {model.num_classes}; take one"
            " that was trained on the model's data, or an unconditional one"
        )


def check_levels(levels: Iterable[float], known: NoiseLevels, what: str) -> None:
    """Refuse noise levels that a model does not know.

    Args:
        levels: those that it would be asked at.
        known: the model's.
        what: the model's part in the run, for messages.

    Raises:
        ConfigError: a level lies outside of the model's range.
    """
    low, high = known.sigma_min, known.sigma_max
    for level in levels:
        if not low * (1 - TOLERANCE) <= level <= high * (1 + TOLERANCE):
            raise ConfigError(
                f"{what} knows noise levels from {low:.4g} to {high:.4g}, and the run would ask it"
                f" at {level:.4g}; set sampler.schedule.sigma_min or sigma_max, or use it within a"
                " window of sigma only"
            )
