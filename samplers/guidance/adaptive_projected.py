"""Adaptive projected guidance (APG): high guidance scales without oversaturation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from genlab import compute
from genlab.choices import check_option
from genlab.diffusion.denoiser import Denoiser, StepInfo
from genlab.errors import ConfigError
from genlab.samplers.guidance.base import Guidance
from genlab.samplers.guidance.extrapolation import ByClass, ByClassOptions

BASES = ("class", "null")


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjected(ByClassOptions):
    """``g = c + (scale - 1) (d_orth + eta d_par)``: guidance across the prediction, not along it.

    Choose it in place of ``cfg`` for high scales (4 and more), where that oversaturates: of
    ``d = c - n`` the part parallel to the prediction c with the class, which only raises contrast,
    is weakened, the norm of d is limited, and momentum keeps it from repeating itself.

    Doubles the cost, as ``cfg`` does. A scale of 1 is off and costs nothing.

    Attributes:
        scale: >= 0; 1 is off.
        eta: share of the parallel part that is kept; 1 is plain guidance, where there is neither
            momentum nor r.
        momentum: beta, between -1 and 1: ``d = c - n + beta d_before``, with d of the evaluation
            before (a Heun step has two); negative ones push away from it, 0 is off. In runs of few
            steps (under 18 of Heun) d changes too fast for it: take 0 there, and for the adaptive
            solver.
        r: limit of the norm of d of a sample; None is none. It grows with the size of what is
            denoised: 15 is used for latents of 4x128x128 (SDXL).
        r_per_sqrt_dim: the same limit divided by the square root of C H W, which carries over to
            other sizes: there 0.06. At most one of the two may be given.
        add_to: ``class`` is the paper's formula; ``null`` is ``n + scale d'``, diffusers' default.
        weight: how the scale runs over time: ``constant``, ``cads`` or ``power-cosine``, see `cfg`.
        space: where parts and norms are taken: ``x0`` (the author's advice), ``eps``, ``v``,
            ``flow-v`` or ``model`` (what the network predicts). They differ.
        rescale: see `cfg`; done in the same space.
        threshold: see `cfg`.
        threshold_max: see `cfg`.

    Source: Sadat et al. (arXiv:2410.02416); the defaults of eta and momentum are those of its page
    22.
    """

    title: ClassVar[str] = "adaptive projected guidance"
    suits: ClassVar[str] = "with a null class"
    example: ClassVar[Mapping[str, Any]] = {"scale": 4, "r_per_sqrt_dim": 0.06}

    space: str = "x0"
    eta: float = 0.0
    momentum: float = -0.5
    r: float | None = None
    r_per_sqrt_dim: float | None = None
    add_to: str = "class"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta < math.inf:
            raise ConfigError(f"{self.title} needs eta >= 0, got {self.eta}")
        if not -1 < self.momentum < 1:
            raise ConfigError(f"{self.title} needs -1 < momentum < 1, got {self.momentum}")
        for name in ("r", "r_per_sqrt_dim"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(
                    f"{self.title} needs {name} > 0, got {limit}; leave it out for no limit"
                )
        if self.r is not None and self.r_per_sqrt_dim is not None:
            raise ConfigError(f"{self.title} takes r or r_per_sqrt_dim, not both; leave one out")
        check_option(self.title, "add_to", self.add_to, BASES)

    @property
    @override
    def remembers(self) -> bool:
        return self.momentum != 0 and not self.is_off

    @property
    @override
    def is_off(self) -> bool:
        """``null`` adds its update at any scale."""
        return self.add_to == "class" and super().is_off

    def limit(self, dimension: int) -> float:
        """The limit of the norm of an update of so many numbers."""
        if self.r_per_sqrt_dim is not None:
            return self.r_per_sqrt_dim * math.sqrt(dimension)
        return math.inf if self.r is None else self.r

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: the model has no classes or no null class, or is guided away from the null
                class already.
        """
        self.check(denoiser)
        return AdaptiveProjectedDenoiser(denoiser, self)


class AdaptiveProjectedDenoiser(ByClass):
    """A denoiser under adaptive projected guidance; see `AdaptiveProjected`."""

    options: AdaptiveProjected

    def __init__(self, inner: Denoiser, options: AdaptiveProjected) -> None:
        super().__init__(inner, options)
        # By the condition that is guided: guidance around this one asks for several.
        self._before: dict[int, Tensor] = {}

    @property
    @override
    def is_neutral(self) -> bool:
        return self.options.add_to == "class" and self.w == 1

    @override
    def begin_step(self, step: StepInfo) -> None:
        """A run begins without momentum, also after a restart."""
        super().begin_step(step)
        if step.index == 0 or (step.restarts and step.sigma_next > step.level):
            self._before.clear()

    @override
    def extrapolate(self, slot: int, c: Tensor, n: Tensor) -> Tensor:
        options = self.options
        d = self._with_momentum(slot, c - n)
        from_class = options.add_to == "class"
        cc = _dot(c, c)
        strength = torch.full_like(cc, self.w - 1 if from_class else self.w)
        limit = options.limit(d[0].numel())
        if limit < math.inf:
            strength = strength * (limit * _above_0(_dot(d, d)).rsqrt()).clamp(max=1)
        # d_orth + eta d_par = d - (1 - eta) <d, c>/<c, c> c
        along = (options.eta - 1) * strength * _dot(d, c) / _above_0(cc)
        strength, along = strength.to(c.dtype), along.to(c.dtype)
        if from_class:
            return torch.addcmul(c * (1 + along), d, strength)
        return torch.addcmul(torch.addcmul(n, c, along), d, strength)

    def _with_momentum(self, slot: int, d: Tensor) -> Tensor:
        beta, before = self.options.momentum, self._before.get(slot)
        if beta == 0:
            return d
        if before is not None and before.shape == d.shape:
            d = torch.add(d, before, alpha=beta)
        self._before[slot] = d
        return d


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, 1, 1, 1), in the widest type that there is."""
    wide = compute.widest(a.device)
    products = torch.linalg.vecdot(a.flatten(1).to(wide), b.flatten(1).to(wide))
    return products[:, None, None, None]


def _above_0(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(values.dtype).tiny)
