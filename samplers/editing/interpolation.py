"""Interpolation: samples between others, by their latents and by every later draw."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from genlab import compute
from genlab.diffusion.noise import Noise


def slerp(
    start: Float[Tensor, "B ..."], end: Float[Tensor, "B ..."], share: Float[Tensor, " B"]
) -> Float[Tensor, "B ..."]:
    """Go from one tensor to another along a great circle, sample by sample.

    A straight line between normal draws passes through draws that are too short; the arc keeps
    their length, so that a model knows what it is given.

    Args:
        start: (B, ...), reached where ``share`` is 0, exactly.
        end: (B, ...), reached where ``share`` is 1.
        share: (B,), of the way, in [0, 1].

    Returns:
        (B, ...), in the dtype of ``start``; computed in float64 where the device has it. Where the
        two ends point the same way, the straight line.

    Source: Shoemake 1985, as Song et al. (arXiv:2010.02502), Sec. 5.3, use it for latents.
    """
    wide = compute.widest(start.device)
    a, b = start.to(wide).flatten(1), end.to(wide).flatten(1)
    t = share.to(a)[:, None]
    lengths = a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)
    cosine = (a * b).sum(1, keepdim=True) / lengths.clamp(min=torch.finfo(wide).tiny)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < 1e-6
    divisor = torch.where(straight, 1.0, sine)
    of_a = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / divisor)
    of_b = torch.where(straight, t, (t * angle).sin() / divisor)
    return (of_a * a + of_b * b).reshape(start.shape).to(start.dtype)


class NoiseBetween:
    """A noise stream between two others: `slerp` of each of their draws.

    Independent normal draws weighed by sine and cosine are normal again, so that stochastic solvers
    get the noise that they need and neighbours get nearly the same.

    Args:
        start: the stream where ``share`` is 0.
        end: the stream where it is 1.
        share: one for each sample, (B,), in [0, 1].
    """

    def __init__(self, start: Noise, end: Noise, share: Float[Tensor, " B"]) -> None:
        self._start, self._end, self._share = start, end, share

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal numbers, (B, *shape): interpolated between the draws of two streams."""
        return slerp(self._start.randn(shape, dtype), self._end.randn(shape, dtype), self._share)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers, (B, *shape), interpolated by way of their normal quantiles."""
        start, end = (
            torch.special.ndtri(noise.rand(shape, dtype).clamp(1e-7, 1 - 1e-7))
            for noise in (self._start, self._end)
        )
        return torch.special.ndtr(slerp(start, end, self._share)).clamp(0, 1 - 1e-7)

    def fork(self, key: str) -> "NoiseBetween":
        """Interpolation between the forks of the two streams."""
        return NoiseBetween(self._start.fork(key), self._end.fork(key), self._share)
