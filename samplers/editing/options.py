"""The options of image editing; `genlab.samplers.editing.runs` applies them."""

import math
from dataclasses import dataclass

from genlab.errors import ConfigError, nearest

ASKS = ("start", "end")
"""At which end of a step the model is asked during inversion."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """How given images are drawn anew.

    Attributes:
        strength: where the run starts, in the model's own time, 0 < strength <= 1: 1 is where
            sampling starts, and small values change little. Steps above it are left out. None
            starts from noise alone, or with ``invert`` from the largest level.
        start_sigma: the same as a noise level, > 0, in place of ``strength``.
        invert: whether the start is found by following the sampler back from the images, rather
            than by adding noise to them.
        ask: of inversion: ``start`` or ``end``, see
            `genlab.samplers.editing.inversion.invert_images`.
        guided: whether inversion follows the sampler's guidance, too. Guidance drives the state to
            typical images; followed back it drives it away from them, and magnifies the errors of
            the steps (Mokady et al., arXiv:2211.09794), so that what is found is less like noise.
            A round trip needs the same on both ways: either this, or no guidance when drawing.
        resample: of inpainting: how often each stretch of the run is gone through, >= 1. 1 never
            goes back.
        jump_length: of inpainting: how many levels a run goes back up at a time, >= 1. None is a
            25th of them, at least 1: 10 of 250, as in the paper.

    Source: Meng et al. (SDEdit, arXiv:2108.01073) for ``strength``; Lugmayr et al. (RePaint,
    arXiv:2201.09865), Algorithm 1 and Sec. 4.2, for ``resample`` and ``jump_length``.
    """

    strength: float | None = None
    start_sigma: float | None = None
    invert: bool = False
    ask: str = "start"
    guided: bool = False
    resample: int = 10
    jump_length: int | None = None

    def __post_init__(self) -> None:
        if self.strength is not None and self.start_sigma is not None:
            raise ConfigError("strength and start_sigma say the same in two ways; leave one out")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ConfigError(
                f"strength must be above 0 and at most 1 (all noise), got {self.strength:g}"
            )
        if self.start_sigma is not None and not 0 < self.start_sigma < math.inf:
            raise ConfigError(f"start_sigma must be a noise level > 0, got {self.start_sigma:g}")
        if self.ask not in ASKS:
            raise ConfigError(
                f"inversion cannot ask at the {self.ask!r} of a step; {nearest(self.ask, ASKS)}"
            )
        if self.resample < 1:
            raise ConfigError(f"resample must be at least 1 (never go back), got {self.resample}")
        if self.jump_length is not None and self.jump_length < 1:
            raise ConfigError(f"jump_length must be at least 1, got {self.jump_length}")

    @property
    def starts_between(self) -> bool:
        """Whether a level is named that the run starts at."""
        return self.strength is not None or self.start_sigma is not None
