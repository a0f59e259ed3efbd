"""Classifier-free guidance: away from the estimate without a class, towards the one with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import ALWAYS, Guidance, GuidanceOptions, When


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(GuidanceOptions):
    """``D = D_null + scale (D_class - D_null)``.

    Choose it to make classes clearer at the price of variety; 1.5 to 4 is usual. The model must
    have been trained with label dropout.

    Doubles the cost: both halves run as one batch of twice the size. A scale of 1 is off and costs
    nothing.

    Attributes:
        scale: >= 0; 1 is off, 0 ignores the class.
        channels: how many channels are guided, from the first; the others keep the estimate (and a
            classifier's score) with the class. None guides all, as does a number that the images do
            not exceed. The published scores of DiT and SiT guide 3 of 4 latent channels.

    Source: Ho and Salimans (arXiv:2207.12598), Eq. 6, whose w is ``scale - 1``; for the estimate x0
    the formula is the same as for epsilon, since both are affine in each other at a given noise
    level.
    """

    suits: ClassVar[str] = "with a null class"
    example: ClassVar[Mapping[str, Any]] = {"scale": 2}

    scale: float = 1.0
    channels: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"classifier-free guidance needs scale >= 0, got {self.scale}")
        if self.channels is not None and self.channels < 1:
            raise ConfigError(
                f"classifier-free guidance needs channels >= 1, got {self.channels}; leave it out "
                "to guide all"
            )

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: guidance is on, but the model has no classes or no null class.
        """
        if self.scale != 1:
            _require_null_class(denoiser)
        return ClassifierFreeDenoiser(denoiser, self.scale, self.channels, when=self.when)


class ClassifierFreeDenoiser(Guidance):
    """A denoiser under classifier-free guidance; see `ClassifierFree`."""

    def __init__(
        self,
        inner: Denoiser,
        scale: float,
        channels: int | None = None,
        *,
        when: When = ALWAYS,
    ) -> None:
        super().__init__(inner, when=when)
        self.scale = scale
        self.channels = channels

    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """See `Guidance.guide`; the variance is that of the class, as in DiT."""
        if self.scale == 1 or conditions[0].labels is None:
            return self.inner.predict_each(x, sigma, conditions)
        nulls = [condition.null() for condition in conditions]
        predictions = self.inner.predict_each(x, sigma, [*conditions, *nulls])
        pairs = zip(predictions[: len(nulls)], predictions[len(nulls) :], strict=True)
        return [self._combine(with_class, without) for with_class, without in pairs]

    def _combine(self, with_class: Prediction, without: Prediction) -> Prediction:
        guided = with_class.away_from(without, self.scale)
        if self.channels is None:
            return guided
        score = guided.score
        if score is not None and with_class.score is not None:
            score = self._first_of(score, with_class.score)
        return replace(guided, x0=self._first_of(guided.x0, with_class.x0), score=score)

    def _first_of(self, guided: State, rest: State) -> State:
        """The channels that are guided from one, the others from the other."""
        return torch.cat([guided[:, : self.channels], rest[:, self.channels :]], dim=1)


def _require_null_class(denoiser: Denoiser) -> None:
    if denoiser.num_classes == 0:
        raise ConfigError(
            "classifier-free guidance needs a class-conditional model, and this one has no classes;"
            " remove cfg from sampler.guidance"
        )
    if not denoiser.has_null_class:
        raise ConfigError(
            "classifier-free guidance needs a model trained with label dropout, and this one never"
            " saw an image without its class; remove cfg from sampler.guidance or train with label"
            " dropout"
        )
