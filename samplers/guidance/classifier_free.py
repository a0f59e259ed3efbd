"""Classifier-free guidance: away from the estimate without a class, towards the one with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from typing_extensions import override

from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import Guidance
from genlab.samplers.guidance.extrapolation import ByClass, ByClassOptions


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(ByClassOptions):
    """``D = D_null + scale (D_class - D_null)``.

    Choose it to make classes clearer at the price of variety; 1.5 to 4 is usual. The model must
    have been trained with label dropout. High scales want ``rescale``, ``threshold``, a window
    (``when``) or ``apg`` in its place.

    Doubles the cost: both halves run as one batch of twice the size. A scale of 1 is off and costs
    nothing, as does any step outside ``when``.

    Attributes:
        scale: >= 0; 1 is off, 0 ignores the class.
        channels: how many channels are guided, from the first; the others keep the estimate (and a
            classifier's score) with the class. None guides all, as does a number that the images do
            not exceed. The published scores of DiT and SiT guide 3 of 4 latent channels.
        weight: how the scale runs over time: ``{name: constant}``; ``{name: cads, tau1: 0.5, tau2:
            0.9}``, none at first; ``{name: power-cosine, power: 4}``, from 1 at noise to the scale
            at data (MDT, DiffiT).
        rescale: phi, 0 to 1: ``phi std(c)/std(g) g + (1 - phi) g`` of the guided value g and the
            value c with the class, each sample's standard deviation; 0.7 is usual, 0 is off.
        space: where standard deviations are taken: ``model`` (what the network predicts), ``x0``,
            ``eps``, ``v``, ``flow-v``. The formula above is the same in all of them.
        threshold: dynamic thresholding: each guided estimate is clamped to this quantile of its
            absolute values (at least 1) and divided by it; 0.995 is Imagen's. For images in [-1,
            1], not for latents. None is off.
        threshold_max: the largest range that thresholding brings back; None is any.

    Source: Ho and Salimans (arXiv:2207.12598), Eq. 6, whose w is ``scale - 1``; for the estimate x0
    the formula is the same as for epsilon, since both are affine in each other at a given noise
    level. Rescaling: Lin et al. (arXiv:2305.08891), Section 3.4; thresholding: Saharia et al.
    (arXiv:2205.11487), Section 2.3.
    """

    title: ClassVar[str] = "classifier-free guidance"
    suits: ClassVar[str] = "with a null class"
    example: ClassVar[Mapping[str, Any]] = {"scale": 2}

    channels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None and self.channels < 1:
            raise ConfigError(
                f"classifier-free guidance needs channels >= 1, got {self.channels}; leave it out "
                "to guide all"
            )

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: guidance is on, but the model has no classes or no null class, or is guided
                away from the null class already.
        """
        self.check(denoiser)
        return ClassifierFreeDenoiser(denoiser, self)


class ClassifierFreeDenoiser(ByClass):
    """A denoiser under classifier-free guidance; see `ClassifierFree`."""

    def __init__(self, inner: Denoiser, options: ClassifierFree) -> None:
        super().__init__(inner, options)
        self.channels = options.channels

    @override
    def combine(
        self, slot: int, c: Prediction, n: Prediction, x: State, sigma: Sigma
    ) -> Prediction:
        """The same in every space."""
        guided = c.away_from(n, self.w)
        if self.channels is None:
            return guided
        score = guided.score
        if score is not None and c.score is not None:
            score = self._first_of(score, c.score)
        return replace(guided, x0=self._first_of(guided.x0, c.x0), score=score)

    def _first_of(self, guided: State, rest: State) -> State:
        """The channels that are guided from one, the others from the other."""
        return torch.cat([guided[:, : self.channels], rest[:, self.channels :]], dim=1)
