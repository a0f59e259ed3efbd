"""CFG-Zero*: classifier-free guidance of flow-matching models with a fitted null prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from genlab import compute
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State, StepInfo
from genlab.diffusion.flow import Flow
from genlab.diffusion.preconditioning import Preconditioning
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import Guidance
from genlab.samplers.guidance.extrapolation import ByClass, ByClassOptions

_LEAST = 1e-8


@dataclass(frozen=True, kw_only=True)
class CFGZero(ByClassOptions):
    """``g = s n + scale (c - s n)`` with ``s = <c, n> / <n, n>`` of each sample's velocities.

    Choose it in place of ``cfg`` for flow-matching models (SiT) that are undertrained or are
    sampled in few steps; with well-trained ones s is near 1 and so is the difference.

    Doubles the cost, as ``cfg`` does; steps set to zero cost nothing. A scale of 1 is off.

    Attributes:
        scale: >= 0; 1 is off.
        zero_init_steps: how many steps at the start of the run have velocity 0, whatever ``when``
            says: the state keeps its noise while time goes on. 0 is none; the paper's 1 helps only
            models whose first velocity is worse than none.
        space: where s is fitted: ``flow-v``, the velocity of straight paths. Another one (``x0``,
            ``eps``, ``v``, ``model``) is a method of your own, and there steps of zero are zeros of
            that space.
        weight: how the scale runs over time: ``constant``, ``cads`` or ``power-cosine``, see `cfg`.
        rescale: see `cfg`.
        threshold: see `cfg`.
        threshold_max: see `cfg`.

    Source: Fan et al. (arXiv:2503.18886).
    """

    title: ClassVar[str] = "CFG-Zero*"
    suits: ClassVar[str] = "flow matching, with a null class"
    example: ClassVar[Mapping[str, Any]] = {"scale": 2}

    space: str = "flow-v"
    zero_init_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_init_steps < 0:
            raise ConfigError(
                f"{self.title} needs zero_init_steps >= 0, got {self.zero_init_steps}"
            )

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: the model was not trained by flow matching, has no classes or no null
                class, or is guided away from the null class already.
        """
        levels = denoiser.noise_levels
        if isinstance(levels, Preconditioning) and not isinstance(levels, Flow) and not self.is_off:
            raise ConfigError(
                f"{self.title} is for models trained by flow matching, whose velocity it corrects,"
                f" and this one is of the kind {levels.name!r}; take cfg or apg"
            )
        self.check(denoiser)
        return CFGZeroDenoiser(denoiser, self)


class CFGZeroDenoiser(ByClass):
    """A denoiser under CFG-Zero*; see `CFGZero`."""

    options: CFGZero

    def __init__(self, inner: Denoiser, options: CFGZero) -> None:
        super().__init__(inner, options)
        self._is_zero = False

    @override
    def begin_step(self, step: StepInfo) -> None:
        """The first steps may be set to zero."""
        super().begin_step(step)
        self._is_zero = step.index < self.options.zero_init_steps
        self.active = self.active or self._is_zero

    @override
    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        if self._is_zero:
            x0 = self.space.estimate(torch.zeros_like(x), x, sigma)
            return [Prediction(x0=x0) for _ in conditions]
        return super().guide(x, sigma, conditions)

    @override
    def extrapolate(self, slot: int, c: Tensor, n: Tensor) -> Tensor:
        wide = compute.widest(c.device)
        flat_c, flat_n = c.flatten(1).to(wide), n.flatten(1).to(wide)
        s = torch.linalg.vecdot(flat_c, flat_n) / (torch.linalg.vecdot(flat_n, flat_n) + _LEAST)
        return torch.lerp(s[:, None, None, None].to(n.dtype) * n, c, self.w)
