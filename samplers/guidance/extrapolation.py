"""Guidance by two predictions: away from one, towards the other, with a weight."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State, StepInfo
from genlab.diffusion.spaces import MODEL, SPACES, space_of
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import Guidance, GuidanceOptions, stack_of
from genlab.samplers.guidance.corrections import rescaled, thresholded
from genlab.samplers.guidance.weights import Weight
from genlab.samplers.parts import Counted


@dataclass(frozen=True, kw_only=True)
class ExtrapolationOptions(GuidanceOptions):
    """Options of every guidance that goes from one prediction towards another and beyond.

    Attributes:
        scale: w >= 0.
        weight: how w runs over time: constant, ``cads`` or ``power-cosine``, see `Weight`.
        rescale: phi, 0 to 1: how far the guided prediction gets back the standard deviation of the
            one that was guided, see `rescaled`; 0.7 is usual, 0 is off.
        space: ``x0``, ``eps``, ``v``, ``flow-v`` or ``model`` (what the network predicts): where
            rescaling, and what else is not affine, is done.
        threshold: dynamic thresholding of the guided estimate, see `thresholded`: the quantile, say
            0.995. For models of images in [-1, 1], not of latents. None is off.
        threshold_max: the largest range that thresholding brings back to [-1, 1]; None is any.
    """

    scale: float = 1.0
    weight: Weight = field(default_factory=Weight)
    rescale: float = 0.0
    space: str = MODEL
    threshold: float | None = None
    threshold_max: float | None = None

    title: ClassVar[str]
    """What messages call it."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"{self.title} needs scale >= 0, got {self.scale}")
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"{self.title} needs rescale between 0 and 1, got {self.rescale}")
        if self.space != MODEL and self.space not in SPACES:
            space_of(self.space)
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ConfigError(
                f"{self.title} needs threshold between 0 and 1 (a quantile), got {self.threshold}"
            )
        if self.threshold_max is not None and not self.threshold_max >= 1:
            raise ConfigError(f"{self.title} needs threshold_max >= 1, got {self.threshold_max}")
        if self.threshold_max is not None and self.threshold is None:
            raise ConfigError(
                f"{self.title}: threshold_max has no effect without threshold; set it, or leave"
                " threshold_max out"
            )

    @property
    def is_off(self) -> bool:
        """Whether the two predictions are never combined."""
        return self.weight.is_always_1(self.scale)


class Extrapolation(Guidance):
    """A denoiser under guidance by two predictions; subclasses ask for them and combine them.

    Attributes:
        w: the weight of the step.
    """

    def __init__(
        self, inner: Denoiser, options: ExtrapolationOptions, others: Sequence[Counted] = ()
    ) -> None:
        super().__init__(inner, when=options.when, space=options.space, others=others)
        self.options = options
        self.w = options.scale  # until a run says where it stands

    def begin_step(self, step: StepInfo) -> None:
        """Decide whether to act in a step and with which weight, and pass it on."""
        super().begin_step(step)
        if self.active and self.options.weight.name != "constant":
            time = self.noise_levels.time_of(step.level)
            self.w = self.options.weight.at(self.options.scale, time)

    @override
    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """The variance is that of the prediction that is guided."""
        if self.is_neutral or not self.applies_to(conditions):
            return [self._clipped(each) for each in self.inner.predict_each(x, sigma, conditions)]
        positive, negative = self.ask(x, sigma, conditions)
        return [
            self._guided(slot, c, n, x, sigma)
            for slot, (c, n) in enumerate(zip(positive, negative, strict=True))
        ]

    @property
    def is_neutral(self) -> bool:
        """Whether the step's weight leaves the prediction as it is, so that one is enough."""
        return self.w == 1

    def applies_to(self, conditions: Sequence[Condition]) -> bool:
        """Whether there is anything to be guided away from."""
        return True

    @abstractmethod
    def ask(
        self, x: State, sigma: Sigma, conditions: Sequence[Condition]
    ) -> tuple[Sequence[Prediction], Sequence[Prediction]]:
        """The predictions to go to, and those to go away from, one of each for a condition."""

    def combine(
        self, slot: int, c: Prediction, n: Prediction, x: State, sigma: Sigma
    ) -> Prediction:
        """The guided prediction.

        Args:
            slot: which of the conditions it is for: guidance around this one asks for several.
            c: what to go to.
            n: what to go away from.
            x: the noisy images.
            sigma: their noise level.
        """
        values = (self.space.express(each.x0, x, sigma) for each in (c, n))
        x0 = self.space.estimate(self.extrapolate(slot, *values), x, sigma)
        return c.with_estimate(x0, n, self.w)

    def extrapolate(self, slot: int, c: Tensor, n: Tensor) -> Tensor:
        """The guided value in the guidance's space; see `combine`."""
        raise NotImplementedError

    def _guided(
        self, slot: int, c: Prediction, n: Prediction, x: State, sigma: Sigma
    ) -> Prediction:
        guided, phi = self.combine(slot, c, n, x, sigma), self.options.rescale
        if phi:
            x0 = rescaled(guided.x0, c.x0, x, sigma, space=self.space, phi=phi)
            guided = replace(guided, x0=x0)
        return self._clipped(guided)

    def _clipped(self, prediction: Prediction) -> Prediction:
        if self.options.threshold is None:
            return prediction
        most = self.options.threshold_max or math.inf
        return replace(prediction, x0=thresholded(prediction.x0, self.options.threshold, most))


class ByClassOptions(ExtrapolationOptions):
    """Options of guidance away from the prediction without a class."""

    by_class: ClassVar[bool] = True

    def check(self, denoiser: Denoiser) -> None:
        """Refuse models that cannot be asked without a class, and a second such guidance.

        Raises:
            ConfigError: says why.
        """
        if self.is_off:
            return
        require_null_class(denoiser, self.title)
        for inner in stack_of(denoiser):
            if not isinstance(inner, ByClass) or inner.options.is_off:
                continue
            if not self.when.is_apart_from(inner.when):
                raise ConfigError(
                    f"{self.title} around {inner.options.title} would only compound the two scales"
                    " at twice the cost; keep one of them, or give them windows (when) that do not"
                    " overlap"
                )


class ByClass(Extrapolation):
    """A denoiser under guidance away from its prediction without a class."""

    @override
    def applies_to(self, conditions: Sequence[Condition]) -> bool:
        """Where there are classes."""
        return conditions[0].labels is not None

    @override
    def ask(
        self, x: State, sigma: Sigma, conditions: Sequence[Condition]
    ) -> tuple[Sequence[Prediction], Sequence[Prediction]]:
        """With the class and without, as one batch."""
        nulls = [condition.null() for condition in conditions]
        predictions = self.inner.predict_each(x, sigma, [*conditions, *nulls])
        return predictions[: len(nulls)], predictions[len(nulls) :]


def require_null_class(denoiser: Denoiser, title: str) -> None:
    """Refuse models that know no class, or nothing but classes.

    Raises:
        ConfigError: says which.
    """
    if denoiser.num_classes == 0:
        raise ConfigError(
            f"{title} needs a class-conditional model, and this one has no classes; remove it from"
            " sampler.guidance (sampler.guidance=[] names none)"
        )
    if not denoiser.has_null_class:
        raise ConfigError(
            f"{title} needs a model trained with label dropout, and this one never saw an image"
            " without its class; remove it from sampler.guidance or train with label dropout"
        )
