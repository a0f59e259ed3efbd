"""Corrections of a guided estimate: rescaling and dynamic thresholding."""

import math

import torch
from torch import Tensor

from genlab.diffusion.denoiser import Sigma, State
from genlab.diffusion.spaces import Space


def rescaled(
    guided: State, conditional: State, x: State, sigma: Sigma, *, space: Space, phi: float
) -> State:
    """Give the guided prediction some of the standard deviation of the one with the class.

    ``phi std(c)/std(g) g + (1 - phi) g`` for the values c and g in a space, each sample's standard
    deviation over all but the batch. Since a space is affine in x0, the factor is the same without
    its ``c_out``, and no value is ever computed.

    Args:
        guided: the guided estimate, (B, C, H, W).
        conditional: the estimate with the class.
        x: the noisy images.
        sigma: their noise level.
        space: where standard deviations are taken.
        phi: share of the rescaled value, 0 to 1.

    Source: Lin et al. (arXiv:2305.08891), Eq. 14 to 16.
    """
    origin = space.origin(x, sigma)
    if origin is None:
        return guided * _factor(guided, conditional, phi)
    factor = _factor(guided - origin, conditional - origin, phi)
    return torch.lerp(origin, guided, factor)


def _factor(g: Tensor, c: Tensor, phi: float) -> Tensor:
    tiny = torch.finfo(g.dtype).tiny
    ratio = c.std((1, 2, 3), keepdim=True) / g.std((1, 2, 3), keepdim=True).clamp(min=tiny)
    return phi * ratio + (1 - phi)


def thresholded(x0: State, ratio: float, most: float = math.inf) -> State:
    """Clamp each sample to its own range ``[-s, s]`` and divide it by ``s``.

    Args:
        x0: estimates of images in [-1, 1], (B, C, H, W).
        ratio: ``s`` is this quantile of ``|x0|`` of the sample, with straight lines between values,
            but at least 1 ...
        most: ... and at most this.

    Source: Saharia et al. (Imagen, arXiv:2205.11487), Section 2.3.
    """
    limit = _quantile(x0.abs().flatten(1), ratio).clamp(1, most)[:, None, None, None]
    return x0.clamp(-limit, limit) / limit


def _quantile(values: Tensor, ratio: float) -> Tensor:
    """Of each row. torch's own takes no more than 2^24 numbers and sorts them all."""
    at = ratio * (values.shape[1] - 1)
    below = math.floor(at)
    highest = values.topk(values.shape[1] - below, dim=1).values
    if at == below:
        return highest[:, -1]
    return torch.lerp(highest[:, -1], highest[:, -2], at - below)
