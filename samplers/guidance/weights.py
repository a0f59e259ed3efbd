"""Weight schedules: how the weight of a guidance varies over a run, decided once per step."""

import math
from dataclasses import dataclass

from genlab.errors import ConfigError, nearest
from genlab.samplers.guidance.annealing import cads_gamma, check_schedule

OPTIONS = {"constant": (), "cads": ("tau1", "tau2"), "power-cosine": ("power",)}
"""Name of a weight -> its options."""

_TAU1, _TAU2, _POWER = 0.5, 0.9, 4.0


@dataclass(frozen=True, kw_only=True)
class Weight:
    """The weight w(t) of a guidance of scale w, in the model's own time: 1 is noise, 0 data.

    Attributes:
        name: ``constant``; ``cads``: gamma(t) w, so that the run begins without any class;
            ``power-cosine``: from 1 (no guidance) at noise to w at data.
        tau1: of ``cads``: up to this time the weight is w; 0.5 unless given.
        tau2: of ``cads``: from this time on it is 0; 0.9 unless given.
        power: of ``power-cosine``, > 0: the larger, the later guidance sets in; 4 unless given.

    Source: Sadat et al. (arXiv:2310.17347), "Dynamic CFG", for ``cads``; Gao et al. (MDT,
    arXiv:2303.14389) and its code for ``power-cosine``, ``1 + (w-1)(1 - cos(pi (1-t)^p))/2``.
    """

    name: str = "constant"
    tau1: float | None = None
    tau2: float | None = None
    power: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIONS:
            raise ConfigError(f"there is no weight {self.name!r}; {nearest(self.name, OPTIONS)}")
        for option in ("tau1", "tau2", "power"):
            if getattr(self, option) is not None and option not in OPTIONS[self.name]:
                raise ConfigError(f"the weight {self.name!r} has no {option}; leave it out")
        check_schedule("the weight 'cads'", *self._taus, "model")
        if self.power is not None and not 0 < self.power < math.inf:
            raise ConfigError(f"the weight 'power-cosine' needs power > 0, got {self.power}")

    @property
    def _taus(self) -> tuple[float, float]:
        return (
            _TAU1 if self.tau1 is None else self.tau1,
            _TAU2 if self.tau2 is None else self.tau2,
        )

    def at(self, scale: float, time: float) -> float:
        """The weight at a time.

        Args:
            scale: w.
            time: between 0 (data) and 1 (noise).
        """
        if self.name == "cads":
            return cads_gamma(time, *self._taus) * scale
        if self.name == "power-cosine":
            power = _POWER if self.power is None else self.power
            return 1 + (scale - 1) * (1 - math.cos(math.pi * (1 - time) ** power)) / 2
        return scale

    def is_always_1(self, scale: float) -> bool:
        """Whether the weight is 1 throughout: the guidance is off."""
        return scale == 1 and self.name != "cads"
