"""Autoguidance: away from what a second, worse model predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from typing_extensions import override

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State
from genlab.errors import ConfigError, nearest
from genlab.samplers.base import Grid
from genlab.samplers.combining import check_classes, check_levels
from genlab.samplers.guidance.base import Guidance
from genlab.samplers.guidance.extrapolation import (
    Extrapolation,
    ExtrapolationOptions,
    require_null_class,
)
from genlab.samplers.parts import Part

CONDITIONS = ("same", "null")


@runtime_checkable
class Guide(Part, Protocol):
    """A second diffusion model; `genlab.DiffusionGenerator` is one."""

    @property
    def denoiser(self) -> Denoiser:
        """What is asked."""
        ...


@dataclass(frozen=True, kw_only=True)
class Autoguidance(ExtrapolationOptions):
    """``D = D_guide + scale (D_model - D_guide)``.

    Choose it for better images without the loss of variety that ``cfg`` brings, where there is a
    smaller or less trained model of the same data: an earlier snapshot or a longer average of one's
    own run will do. With a guide that is asked without the class it is classifier-free guidance by
    a model of its own, as in EDM2.

    Costs one evaluation of the guide for each of the model. A scale of 1 is off and costs nothing.

    Attributes:
        guide: a bundled or zoo name, a folder, an official file, or a model of a training run:
            ``runs/mine@sigma_rel=0.15``, ``runs/mine@kimg=200``, ``runs/mine@halflife@kimg=200``;
            or a `DiffusionGenerator` itself.
        guide_condition: ``same`` asks the guide with the class, ``null`` without it. A guide that
            has no classes is never asked with one.
        scale: >= 0; 1 is off. 1.4 to 2.5 are usual.
        weight: how the scale runs over time: ``constant``, ``cads`` or ``power-cosine``, see `cfg`.
        rescale: see `cfg`.
        space: see `cfg`.
        threshold: see `cfg`.
        threshold_max: see `cfg`.

    Source: Karras et al. (arXiv:2406.02507), Eq. 3, whose w is ``scale``.
    """

    title: ClassVar[str] = "autoguidance"
    parts: ClassVar[Mapping[str, str]] = {"guide": "generator"}
    suits: ClassVar[str] = "any, with a second model of the same data"
    example: ClassVar[Mapping[str, Any]] = {"guide": "dit-fmnist-s", "scale": 1.5}

    guide: Any
    guide_condition: str = "same"
    scale: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.guide, str | Guide):
            raise ConfigError(
                "autoguidance needs guide: a name, a folder, a file or a DiffusionGenerator, got a"
                f" {type(self.guide).__name__}"
            )
        if self.guide_condition not in CONDITIONS:
            raise ConfigError(
                f"autoguidance has no guide_condition {self.guide_condition!r}; "
                f"{nearest(self.guide_condition, CONDITIONS)}"
            )

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: the guide knows other classes than the model, or cannot do without.
        """
        guide: Denoiser = self.guide.denoiser
        if not self.is_off:
            check_classes(denoiser.num_classes, guide.num_classes, "the guide", or_none=True)
            if self.guide_condition == "null" and guide.num_classes > 0:
                require_null_class(guide, "a guide with guide_condition: null")
        return AutoguidedDenoiser(denoiser, guide, self)

    @override
    def check_run(self, grid: Grid) -> None:
        """The guide must know the levels at which it is evaluated."""
        super().check_run(grid)
        levels = grid.sigmas.tolist()[:-1]
        guided_levels = (
            level
            for index, level in enumerate(levels)
            if self.when.covers(level, index, len(levels), grid.noise_levels)
        )
        if not self.is_off:
            check_levels(guided_levels, self.guide.denoiser.noise_levels, "the guide")


class AutoguidedDenoiser(Extrapolation):
    """A denoiser under autoguidance; see `Autoguidance`."""

    def __init__(self, inner: Denoiser, weak: Denoiser, options: Autoguidance) -> None:
        super().__init__(inner, options, others=[weak])
        self.weak = weak
        self.without_class = options.guide_condition == "null" or weak.num_classes == 0
        # Guidance around this one asks both for the null class.
        self.has_null_class = inner.has_null_class and (self.without_class or weak.has_null_class)

    @override
    def ask(
        self, x: State, sigma: Sigma, conditions: Sequence[Condition]
    ) -> tuple[Sequence[Prediction], Sequence[Prediction]]:
        """Each model has a batch of its own, with its own rows."""
        strong = self.inner.predict_each(x, sigma, conditions)
        if not self.without_class:
            return strong, self.weak.predict_each(x, sigma, conditions)
        # Without their classes all conditions are the same one.
        [weak] = self.weak.predict_each(x, sigma, [self._null(conditions[0])])
        return strong, [weak] * len(strong)

    def _null(self, condition: Condition) -> Condition:
        if self.weak.num_classes > 0:
            return condition.null()
        return replace(condition, labels=None, embedding_transforms=())

    @override
    def combine(
        self, slot: int, c: Prediction, n: Prediction, x: State, sigma: Sigma
    ) -> Prediction:
        """The same in every space."""
        return c.away_from(n, self.w)
