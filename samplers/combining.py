"""Whether two models may work on the state of one run: their data spaces and classes must agree."""

from typing import Any, Protocol, runtime_checkable

from genlab.diffusion.denoiser import Denoiser
from genlab.errors import ConfigError


@runtime_checkable
class Combinable(Protocol):
    """A diffusion model with what decides which states it can be asked about."""

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


def check_combinable(model: Combinable, other: Combinable, what: str) -> None:
    """Refuse a second model whose estimates mean something else than the first one's.

    Preconditionings may differ, since every model is D(x; sigma). The range is part of the space:
    images are in [-1, 1], and latents are in the range that their autoencoder's scale and shift
    give them, which its hash covers.

    Args:
        model: the model that is sampled.
        other: a second one, asked about the same states.
        what: how messages call the second, with an article: ``the stitched model dit-s``.

    Raises:
        ConfigError: shape, autoencoder, kind of data or number of classes differ; says which.
    """
    check_classes(model.num_classes, other.num_classes, what)
    if model.state_shape != other.state_shape:
        raise ConfigError(
            f"{what} denoises states of shape {other.state_shape}, and the model "
            f"{model.state_shape}; take a second model that was trained on the same data"
        )
    ours, theirs = model.autoencoder, other.autoencoder
    if (ours is None) != (theirs is None):
        latents, images = ("the model", what) if theirs is None else (what, "the model")
        raise ConfigError(
            f"{latents} denoises latents and {images} images; both must work in the same space"
        )
    if ours is not None and ours is not theirs and ours.sha256() != theirs.sha256():
        raise ConfigError(
            f"{what} has another autoencoder than the model (weights, scale or shift differ), so "
            "that its latents mean other images; take one with the same autoencoder"
        )
    if bool(getattr(model, "enlarges", False)) != bool(getattr(other, "enlarges", False)):
        raise ConfigError(
            f"only one of the model and {what} enlarges small images; both must, or neither"
        )


def check_classes(known: int, other: int, what: str) -> None:
    """Refuse a second model of other classes.

    Args:
        known: number of classes of the model that is sampled; 0 for none.
        other: number of classes of the second one.
        what: see `check_combinable`.

    Raises:
        ConfigError: they differ.
    """
    if known != other:
        raise ConfigError(
            f"{what} knows {other} classes and the model {known}; take a second model that was "
            "trained on the same classes"
        )
