"""Features of a noise level or timestep: cosines and sines at many frequencies."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks.layers.precision import WideBuffers


def _cos_sin(t: Float[Tensor, " B"], frequencies: Float[Tensor, " F"]) -> Float[Tensor, "B C"]:
    phase = t.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def time_features(
    t: Float[Tensor, " B"], channels: int, *, endpoint: bool = False
) -> Float[Tensor, "B C"]:
    """[cos | sin] of timesteps at frequencies from 1 to 1 / 10000, in float32.

    Args:
        t: timesteps.
        channels: number of features; an odd one ends with a zero.
        endpoint: whether the last frequency is 1 / 10000 itself (diffusers' DiT) or one step before
            (ADM, DiT).
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = (-math.log(10000) * index / (half - endpoint)).exp()
    return F.pad(_cos_sin(t, frequencies), (0, channels % 2))


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise level at frequencies from 1 to 1 / 10000, as EDM has them.

    They are those of `time_features` but for their rounding, which large phases make visible.

    Args:
        channels: number of features, even.
        endpoint: whether the last frequency is 1 / 10000 itself (DDPM++) or one step before (ADM).
    """

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        half = channels // 2
        if channels % 2 or (endpoint and half < 2):
            raise ConfigError(
                f"a noise embedding needs an even number of at least 4 channels, got {channels}"
            )
        self.num_frequencies = half
        self.steps = half - 1 if endpoint else half

    def forward(self, c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """[cos | sin] features, float32."""
        index = torch.arange(self.num_frequencies, dtype=torch.float32, device=c_noise.device)
        return _cos_sin(c_noise, (1 / 10000) ** (index / self.steps))


class FourierEmbedding(WideBuffers):
    """Cosines and sines of the noise level at random frequencies, kept in the checkpoint (NCSN++).

    Half-precision frequencies would turn phases of many cycles into noise.

    Args:
        channels: number of features, even.
        scale: standard deviation of the frequencies, in cycles per unit of c_noise.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        if channels % 2:
            raise ConfigError(f"a noise embedding needs an even number of channels, got {channels}")
        self.register_buffer("freqs", scale * torch.randn(channels // 2))

    def forward(self, c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """[cos | sin] features, float32 or wider."""
        return _cos_sin(c_noise, 2 * math.pi * self.freqs)
