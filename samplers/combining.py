"""Check that two models can share the state of one run: same data space, same classes."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError

TOLERANCE = 1e-6
"""By what share a noise level may lie outside of a model's range: rounding, no more."""


@runtime_checkable
class Combinable(Protocol):
    """A diffusion model with the properties that decide which states it can denoise."""

    @property
    def denoiser(self) -> Denoiser:
        """The model as samplers see it."""
        ...

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it denoises: images in [-1, 1], or latents."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional model."""
        ...

    @property
    def autoencoder(self) -> Any:
        """What makes images of latents, with a method ``sha256``; None for a model of images."""
        ...


def check_combinable(model: Combinable, other: Combinable, title: str) -> None:
    """Refuse a second model whose estimates cannot be combined with the first one's.

    Args:
        model: the model that is sampled.
        other: a second one, asked about the same states.
        title: how messages call the second, with an article: ``the stitched model dit-s``.

    Raises:
        ConfigError: shape, autoencoder, kind of data or number of classes differ; says which.
    """
    check_classes(model.num_classes, other.num_classes, title)
    check_data_space(model, other, title)


def check_data_space(model: Combinable, other: Combinable, title: str) -> None:
    """Refuse a second model of other data than the first one's.

    Preconditionings may differ, since every model is D(x; sigma). The range is part of the space:
    images are in [-1, 1], and latents are in the range that their autoencoder's scale and shift
    give them, which its hash covers.

    Args:
        model: see `check_combinable`.
        other: see `check_combinable`.
        title: see `check_combinable`.

    Raises:
        ConfigError: shape, autoencoder or kind of data differ; says which.
    """
    if model.state_shape != other.state_shape:
        raise ConfigError(
            f"{title} denoises states of shape {other.state_shape}, and the model "
            f"{model.state_shape}; take a second model that was trained on the same data"
        )
    ours, theirs = model.autoencoder, other.autoencoder
    if (ours is None) != (theirs is None):
        latents, images = ("the model", title) if theirs is None else (title, "the model")
        raise ConfigError(
            f"{latents} denoises latents and {images} images; both must work in the same space. "
            f"Where {images} works on the same latents, give it their autoencoder, too: genlab "
            "convert SOURCE -o FOLDER --autoencoder AUTOENCODER"
        )
    if ours is not None and ours is not theirs and ours.sha256() != theirs.sha256():
        raise ConfigError(
            f"{title} has another autoencoder than the model (weights, scale or shift differ), so "
            "that its latents mean other images; take one with the same autoencoder"
        )
    if bool(getattr(model, "enlarges", False)) != bool(getattr(other, "enlarges", False)):
        raise ConfigError(
            f"only one of the model and {title} enlarges small images; both must, or neither"
        )


def check_classes(count: int, other: int, title: str, *, or_none: bool = False) -> None:
    """Refuse a second model of other classes.

    Args:
        count: number of classes of the model that is sampled; 0 for none.
        other: number of classes of the second one.
        title: see `check_combinable`.
        or_none: whether the second one may do without classes, because it is then asked without.

    Raises:
        ConfigError: they differ.
    """
    if other != count and not (or_none and other == 0):
        raise ConfigError(
            f"{title} knows {other} classes and the model {count}; take a second model that was "
            f"trained on the same classes{', or on none' if or_none else ''}"
        )


def check_levels(levels: Iterable[float], noise_levels: NoiseLevels, title: str) -> None:
    """Refuse noise levels that a second model does not know.

    Args:
        levels: those that it would be evaluated at.
        noise_levels: its own.
        title: see `check_combinable`.

    Raises:
        ConfigError: a level lies outside of its range.
    """
    low, high = noise_levels.sigma_min, noise_levels.sigma_max
    for level in levels:
        if not low * (1 - TOLERANCE) <= level <= high * (1 + TOLERANCE):
            raise ConfigError(
                f"{title} knows noise levels from {low:.4g} to {high:.4g} and would be asked at "
                f"{level:.4g}; set sigma_min or sigma_max of the schedule, or let it act in a "
                "window of noise levels (when.sigma) only"
            )
