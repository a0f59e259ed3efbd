"""A guidance with a second network: away from what a weaker model predicts (autoguidance)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from genlab import DiffusionGenerator
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import Guidance, GuidanceOptions


@dataclass(frozen=True, kw_only=True)
class WeakModelGuidance(GuidanceOptions):
    """``D = D_guide + scale (D_model - D_guide)``.

    Choose it for better images without less variety, where there is a smaller or less trained model
    of the same data. Costs one evaluation of the guide for each of the model.

    Attributes:
        guide: a name or folder of a diffusion model, or a `DiffusionGenerator`.
        scale: >= 0; 1 is off.

    Source: Karras et al. (arXiv:2406.02507), Eq. 3, whose w is ``scale``.
    """

    parts: ClassVar[Mapping[str, str]] = {"guide": "generator"}

    guide: Any
    scale: float = 1.5

    def __post_init__(self) -> None:
        if not isinstance(self.guide, str | DiffusionGenerator):
            raise ConfigError("weak-model needs guide: a name or folder, or a DiffusionGenerator")
        if not 0 <= self.scale < math.inf:
            raise ConfigError(f"weak-model needs scale >= 0, got {self.scale}")

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser."""
        known = (self.guide.num_classes, denoiser.num_classes)
        if known[0] != known[1]:
            raise ConfigError(f"the guide has {known[0]} classes and the model {known[1]}")
        return WeakModelDenoiser(denoiser, self)


class WeakModelDenoiser(Guidance):
    """A denoiser under `WeakModelGuidance`."""

    def __init__(self, inner: Denoiser, options: WeakModelGuidance) -> None:
        weak: Denoiser = options.guide.denoiser
        super().__init__(inner, when=options.when, others=[weak])
        self.weak, self.scale = weak, options.scale

    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """See `Guidance.guide`."""
        strong = self.inner.predict_each(x, sigma, conditions)
        if self.scale == 1:
            return strong
        weak = self.weak.predict_each(x, self.weak.round_sigma(sigma), conditions)
        return [a.away_from(b, self.scale) for a, b in zip(strong, weak, strict=True)]
