"""Running averages of the weights, by half-life (EDM) and by power function (EDM2)."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from genlab.training.loop.trained import changing_tensors


def averaged_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network that are averaged: the floating-point ones that training changes.

    Averaged weights need running statistics and singular vectors that fit them, and the averages of
    these over the same steps nearly do. Buffers that never change stay as they are, and so do
    frozen parameters, of which there is no copy.

    Returns:
        Name in the state dict -> tensor, shared with the network.
    """
    changing = changing_tensors(network).items()
    return {key: value for key, value in changing if value.is_floating_point()}


class WeightAverage:
    """An average of a network's weights that follows them step by step.

    Subclasses say how much of the old average survives a step.

    Args:
        parameters: of `averaged_tensors`; the average starts as their copy.
    """

    name: str

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.names = list(parameters)
        self.values = [p.detach().clone() for p in parameters.values()]

    def keep(self, images: int, batch_size: int) -> float:
        """The share of the old average that stays, beta, in the step that starts at ``images``."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], images: int, batch_size: int) -> None:
        """Move towards the parameters.

        Args:
            parameters: their values now, in the order of the constructor's.
            images: that the run had seen before this step.
            batch_size: images of this step.
        """
        weight = 1 - self.keep(images, batch_size)
        # One call for all tensors: a loop of 200 small ones costs more than the arithmetic on a
        # GPU.
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], weight)

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> averaged parameter; shared, not copied."""
        return dict(zip(self.names, self.values, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the values that `state_dict` gave."""
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])


class HalfLifeAverage(WeightAverage):
    """Exponential average with a half-life in images, which starts short and grows with the run.

    ``beta = 0.5^(batch / min(halflife, rampup_ratio * images))``, and 0 before ``start``. Source:
    EDM's training (arXiv:2206.00364, Appendix F.2); the start is that of BigGAN's.

    Args:
        parameters: name -> parameter.
        halflife: in images.
        rampup_ratio: bounds the half-life by this share of the images seen; None does not.
        start: the average is a copy of the weights in the steps that end before so many images.
    """

    name = "halflife"

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        halflife: float,
        rampup_ratio: float | None,
        start: float = 0.0,
    ) -> None:
        super().__init__(parameters)
        self.halflife = halflife
        self.rampup_ratio = rampup_ratio
        self.start = start

    @override
    def keep(self, images: int, batch_size: int) -> float:
        if images + batch_size < self.start:
            return 0.0
        halflife = self.halflife
        if self.rampup_ratio is not None:
            halflife = min(halflife, self.rampup_ratio * images)
        return 0.5 ** (batch_size / max(halflife, 1e-8))


class PowerAverage(WeightAverage):
    """Average whose weights grow with a power of time: ``theta(tau)`` counts with ``tau^gamma``.

    ``beta = (1 - batch / images_after)^(gamma + 1)``. Source: EDM2 (arXiv:2312.02696, section 3.1).

    Args:
        parameters: name -> parameter.
        sigma_rel: width of the profile as a share of the training time, between 0 and 0.28.
    """

    def __init__(self, parameters: Mapping[str, Tensor], sigma_rel: float) -> None:
        super().__init__(parameters)
        self.sigma_rel = sigma_rel
        self.name = power_name(sigma_rel)
        self.gamma = gamma_of(sigma_rel)

    @override
    def keep(self, images: int, batch_size: int) -> float:
        return float((1 - batch_size / (images + batch_size)) ** (self.gamma + 1))


def power_name(sigma_rel: float) -> str:
    """What a power-function average is called in files.

    >>> power_name(0.05)
    'power-0.050'
    """
    return f"power-{sigma_rel:.3f}"


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the power function whose profile is ``sigma_rel`` wide.

    The profile ``tau^gamma`` on [0, 1] has the standard deviation ``sqrt((g + 1) / ((g + 2)^2 (g +
    3)))``; that is a cubic in g, whose largest real root is the exponent.

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.10), 2)
    (16.97, 6.94)
    """
    square = sigma_rel**-2
    # (g + 2)^2 (g + 3) - (g + 1) / sigma_rel^2 = 0
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def sigma_rel_of(gamma: float) -> float:
    """The width of a profile, the inverse of `gamma_of`."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
