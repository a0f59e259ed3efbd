"""DDPM-style models: T discrete noise levels, made by betas, and the Markov chains over them.

The literature writes the noisy image as ``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) n``.
Dividing by ``sqrt(alpha_bar_t)`` gives the unscaled frame of all samplers, with
``sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t)``. Tables are float64 and run from the least noise
(t = 0) to the most (t = T - 1).
"""

import math
import re
import reprlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from genlab.diffusion.noise_levels import VARIANCES
from genlab.diffusion.preconditioning import MOST_LEVELS, Coefficients, Preconditioning
from genlab.diffusion.tables import gather, placed
from genlab.errors import ConfigError, nearest

# Smallest and largest beta where none are given; DDPM's belong to T = 1000 and scale with 1000 / T.
_DDPM_BETAS = (1e-4, 0.02)
_LATENT_DIFFUSION_BETAS = (0.00085, 0.012)

_PURE_NOISE = 2.0**24

SCHEDULES = ("linear", "cosine", "scaled_linear")
PREDICTIONS = ("epsilon", "v", "x0")


def betas(
    schedule: str, T: int, beta_start: float | None = None, beta_end: float | None = None
) -> Float64[Tensor, " T"]:
    """The noise added at each step of the forward chain.

    Args:
        schedule: ``linear`` (DDPM), ``cosine`` (improved DDPM; diffusers calls it
            ``squaredcos_cap_v2``) or ``scaled_linear`` (latent diffusion: linear in the square
            root).
        T: number of steps.
        beta_start: first beta; None is 1e-4 times 1000 / T (linear) or 0.00085 (scaled_linear).
        beta_end: last beta; None is 0.02 times 1000 / T or 0.012.

    Raises:
        ConfigError: the schedule is unknown, T is out of bounds, or a beta does not lie between 0
            and 1.

    Source: Ho et al. (arXiv:2006.11239), Sec. 4; Nichol and Dhariwal (arXiv:2102.09672), Eq. 17.
    """
    if not 1 <= T <= MOST_LEVELS:
        raise ConfigError(
            f"a discrete model needs T >= 1 noise levels, and at most {MOST_LEVELS:,}, got {T}"
        )
    if schedule == "cosine":
        if beta_start is not None or beta_end is not None:
            raise ConfigError(
                "the cosine schedule has no beta_start and beta_end; leave them out or take linear"
            )
        t = torch.arange(T + 1, dtype=torch.float64) / T
        alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    if schedule == "linear":
        first, last = (beta * 1000 / T for beta in _DDPM_BETAS)
        power = 1
    elif schedule == "scaled_linear":
        first, last = _LATENT_DIFFUSION_BETAS
        power = 2
    else:
        raise ConfigError(f"there are no {schedule!r} betas; {nearest(schedule, SCHEDULES)}")
    first = first if beta_start is None else beta_start
    last = last if beta_end is None else beta_end
    if not (0 < first < 1 and 0 < last < 1):
        raise ConfigError(
            f"betas must lie between 0 and 1, but {schedule} ones for T = {T} run from {first:g} to"
            f" {last:g}; take T > 20, the cosine schedule, or set beta_start and beta_end"
        )
    ends = (first ** (1 / power), last ** (1 / power))
    return torch.linspace(*ends, T, dtype=torch.float64) ** power


def respaced_timesteps(T: int, steps: int | str) -> list[int]:
    """Which of T timesteps a shorter chain keeps, in increasing order.

    Args:
        T: length of the whole chain.
        steps: a number, spread evenly with both ends (``25`` of 1000 is 0, 42, 83, ... 999);
            ``"10,15,20"`` so many in each of as many equal sections; ``"ddim25"`` every 40th from
            0; ``""`` all of them.

    Raises:
        ConfigError: it is none of these, or asks for more steps than there are.

    Source: guided-diffusion's respacing, whose rounding decides which timesteps these are.
    """
    text = str(steps).replace(" ", "")
    if text == "":
        return list(range(T))
    if text.startswith("ddim"):
        return _strided(T, _count(text.removeprefix("ddim"), steps), steps)
    counts = [_count(part, steps) for part in text.split(",")]
    size, longer = divmod(T, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if count > length:
            raise ConfigError(
                f"steps {steps!r} asks for {count} of a section of {length} timesteps; "
                f"ask for fewer (the model has {T} in all)"
            )
        kept += [start + offset for offset in _spread(length, count)]
        start += length
    return kept


def _count(text: str, steps: int | str) -> int:
    # Six digits reach every timestep, and int() reads no more than a few thousand.
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or int(text) < 1:
        raise ConfigError(
            f"steps must be a number, sections such as '10,15,20', or 'ddim25', got "
            f"{reprlib.repr(steps)}"
        )
    return int(text)


def _strided(T: int, count: int, steps: int | str) -> list[int]:
    for stride in range(1, T + 1):
        if len(range(0, T, stride)) == count:
            return list(range(0, T, stride))
    raise ConfigError(
        f"no whole stride picks exactly {count} of {T} timesteps, as {steps!r} asks; "
        "take a divisor of it, or a plain number"
    )


def _spread(length: int, count: int) -> list[int]:
    stride = (length - 1) / (count - 1) if count > 1 else 1.0
    # Summed rather than multiplied: the rounding of halves then falls as it does officially.
    at, offsets = 0.0, []
    for _ in range(count):
        offsets.append(round(at))
        at += stride
    return offsets


@dataclass(frozen=True)
class Chain:
    """The steps between given noise levels as a Markov chain: all that DDPM's formulas need.

    Indices count the levels from the least noise; step ``i`` leads from level ``i`` to ``i - 1``,
    step 0 to the clean image. Variances and means are of the scaled ``x_t`` of the literature.

    Attributes:
        sigmas: increasing noise levels, (N,), float64, without 0.

    Source: Ho et al. (arXiv:2006.11239), Eq. 6 and 7; Nichol and Dhariwal (arXiv:2102.09672),
    Eq. 15 and 19 (betas of a shortened chain, learned variance).
    """

    sigmas: Float64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.sigmas)

    @cached_property
    def alphas_cumprod(self) -> Float64[Tensor, " N"]:
        """alpha_bar of each level."""
        return 1 / (1 + self.sigmas**2)

    @cached_property
    def scale(self) -> Float64[Tensor, " N"]:
        """``sqrt(alpha_bar)``: the image's share in the scaled ``x_t`` of each level."""
        return self.alphas_cumprod.sqrt()

    @cached_property
    def sigmas_next(self) -> Float64[Tensor, " N"]:
        """Where each step leads."""
        return torch.cat([self.sigmas.new_zeros(1), self.sigmas[:-1]])

    @cached_property
    def betas(self) -> Float64[Tensor, " N"]:
        """``1 - alpha_bar_i / alpha_bar_(i-1)``: the noise that each forward step adds."""
        return (self.sigmas**2 - self.sigmas_next**2) * self.alphas_cumprod

    @cached_property
    def log_betas(self) -> Float64[Tensor, " N"]:
        """Their logarithm."""
        return self.betas.log()

    @cached_property
    def log_betas_clipped(self) -> Float64[Tensor, " N"]:
        """The same, with the posterior's of step 1 for step 0."""
        return torch.cat([self._variance_of_step_0, self.betas[1:]]).log()

    @cached_property
    def posterior_variance(self) -> Float64[Tensor, " N"]:
        """Variance of ``q(x_(i-1) | x_i, x0)``; 0 for step 0."""
        return self.betas * self.shrinkage / self._ratio

    @cached_property
    def posterior_log_variance_clipped(self) -> Float64[Tensor, " N"]:
        """Its logarithm, with that of step 1 for step 0."""
        return torch.cat([self._variance_of_step_0.log(), self.posterior_variance[1:].log()])

    @cached_property
    def posterior_mean_coef1(self) -> Float64[Tensor, " N"]:
        """Weight of x0 in the mean of ``q(x_(i-1) | x_i, x0)``."""
        return (1 - self.shrinkage) / (1 + self.sigmas_next**2).sqrt()

    @cached_property
    def posterior_mean_coef2(self) -> Float64[Tensor, " N"]:
        """Weight of ``x_i`` in that mean."""
        return self.shrinkage / self._ratio.sqrt()

    @cached_property
    def shrinkage(self) -> Float64[Tensor, " N"]:
        """``(sigma_next / sigma)^2``: in the unscaled frame the mean is x0 + this (x - x0)."""
        return (self.sigmas_next / self.sigmas) ** 2

    def log_variance(
        self,
        index: int | Int64[Tensor, " B"],
        kind: str,
        channels: Float[Tensor, "B C H W"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Logarithm of the variance that a model gives its reverse step.

        Args:
            index: one step for the whole batch, or one for each sample.
            kind: ``fixed_small`` is the posterior's, ``fixed_large`` beta's, ``learned_range``
                interpolates between the two as the network says, ``learned`` is what it says.
            channels: the network's raw variance channels, where ``kind`` is learned.

        Returns:
            One number (0-d, float64, on the CPU); one for each sample, (B, 1, 1, 1), where
            ``index`` is; or one for each pixel, as ``channels``.

        Raises:
            ConfigError: ``kind`` is learned, and there are no channels.
        """
        if kind == "fixed_small":
            return gather(self.posterior_log_variance_clipped, index, channels)
        if kind == "fixed_large":
            return gather(self.log_betas_clipped, index, channels)
        if channels is None:
            raise ConfigError(
                "this model predicts a variance, and a guidance around it has lost it; take a "
                "guidance that implements predict, or give the solver variance=fixed_small"
            )
        if kind == "learned":
            return channels
        low = gather(self.posterior_log_variance_clipped, index, channels)
        high = gather(self.log_betas, index, channels)
        share = (channels + 1) / 2  # not clamped: training keeps it near [0, 1]
        return share * high + (1 - share) * low

    @property
    def _ratio(self) -> Float64[Tensor, " N"]:
        # alpha_bar_i / alpha_bar_(i-1)
        return (1 + self.sigmas_next**2) * self.alphas_cumprod

    @property
    def _variance_of_step_0(self) -> Float64[Tensor, "1"]:
        # The true one is 0, whose logarithm no formula stands; a chain of one step has beta alone.
        return self.posterior_variance[1:2] if len(self) > 1 else self.betas


@lru_cache(maxsize=8)
def chain_over(levels: Float64[Tensor, " T"], steps: int | str = "") -> Chain:
    """The chain of a discrete model, or a shorter one over some of its timesteps.

    Tensors are keys by identity: a model in training, which asks in every batch, gets one object.

    Args:
        levels: the model's.
        steps: see `respaced_timesteps`; nothing keeps them all.
    """
    return Chain(levels[respaced_timesteps(len(levels), steps)])


@dataclass(frozen=True)
class Discrete(Preconditioning):
    """DDPM and its kin: T noise levels, a network that predicts epsilon, v or x0.

    Choose it for ADM (guided-diffusion), DiT and diffusers' models.

    Attributes:
        schedule: name of the betas, see `betas`.
        T: number of noise levels, >= 1.
        prediction: what the network gives: ``epsilon`` (the noise), ``v`` (arXiv:2202.00512,
            Appendix D) or ``x0``.
        variance: of the reverse step, see `Chain.log_variance`; a learned one doubles the network's
            output channels.
        rescale_timesteps: whether the network gets ``1000 t / T`` rather than ``t``.
        beta_start: first beta, None as `betas` says.
        beta_end: last beta, None as `betas` says.
        interpolate: whether noise levels between two timesteps are known, too: the network gets
            a fractional timestep, as diffusers' Euler and Heun samplers do; otherwise every noise
            level is rounded to a timestep.
        interpolate_in_log: whether such a timestep lies on a straight line in ln sigma, as in
            k-diffusion, rather than in sigma.
        nearest_in_log: whether a network whose noise levels are interpolated is nevertheless told a
            whole timestep, the nearest in ln sigma, as diffusers' multistep samplers do.
        zero_terminal_snr: whether the betas were rescaled so that the last timestep is noise alone
            (Lin et al., arXiv:2305.08891, Algorithm 1). Its infinite noise level is stood for by
            2^24, which float32 cannot tell from it in the scaled frame.
    """

    name: ClassVar[str] = "discrete"

    schedule: str = "linear"
    T: int = 1000
    prediction: str = "epsilon"
    variance: str = "fixed_large"
    rescale_timesteps: bool = False
    beta_start: float | None = None
    beta_end: float | None = None
    interpolate: bool = False
    interpolate_in_log: bool = False
    nearest_in_log: bool = False
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ConfigError(
                f"there is no prediction {self.prediction!r}; "
                f"{nearest(self.prediction, PREDICTIONS)}"
            )
        if self.variance not in VARIANCES:
            raise ConfigError(
                f"there is no variance {self.variance!r}; {nearest(self.variance, VARIANCES)}"
            )
        betas(self.schedule, self.T, self.beta_start, self.beta_end)
        for option in ("nearest_in_log", "interpolate_in_log"):
            if getattr(self, option) and not self.interpolate:
                raise ConfigError(f"{option} has no effect without interpolate; leave it out")
        if self.nearest_in_log and self.interpolate_in_log:
            raise ConfigError(
                "interpolate_in_log has no effect with nearest_in_log, which is of whole timesteps;"
                " leave it out"
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ConfigError(
                "a model cannot find the image in pure noise by predicting the noise: "
                "zero_terminal_snr needs prediction v or x0"
            )

    @cached_property
    def levels(self) -> Float64[Tensor, " T"]:
        """The noise level of each timestep, increasing."""
        alpha_bar = (1 - betas(self.schedule, self.T, self.beta_start, self.beta_end)).cumprod(0)
        if self.zero_terminal_snr:
            root = alpha_bar.sqrt()
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
            alpha_bar[-1] = 1 / (1 + _PURE_NOISE**2)
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    @property
    def continuous(self) -> bool:
        """Whether levels between two timesteps are interpolated."""
        return self.interpolate

    @cached_property
    def sigma_min(self) -> float:
        """The noise level of timestep 0."""
        return float(self.levels[0])

    @cached_property
    def sigma_max(self) -> float:
        """The noise level of timestep T - 1."""
        return float(self.levels[-1])

    def timestep(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The timestep of a noise level in 0 ... T - 1: the nearest one, or between two of them."""
        levels = placed(self.levels, sigma.device, sigma.dtype)
        if self.nearest_in_log:
            return _interpolate(sigma.log(), levels.log()).round()
        if self.interpolate_in_log:
            return _interpolate(sigma.log(), levels.log())
        if self.interpolate:
            return _interpolate(sigma, levels)
        apart = (sigma.reshape(-1, 1) - levels).abs()
        return apart.argmin(1).reshape(sigma.shape).to(sigma.dtype)

    def sigma(self, t: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The noise level of a timestep in 0 ... T - 1, whole or not."""
        levels = placed(self.levels, t.device, t.dtype)
        return between(levels, t, in_log=self.interpolate_in_log)

    def round_sigma(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """The nearest of `levels`; where it interpolates, ``sigma`` is only kept in their range."""
        if self.interpolate:
            return sigma.clamp(self.sigma_min, self.sigma_max)
        levels = placed(self.levels, sigma.device, sigma.dtype)
        return levels[self.timestep(sigma).to(torch.int64)]

    def coefficients(self, sigma: Float[Tensor, "*s"]) -> Coefficients:
        """The scalings of this prediction; the input has unit variance for data that has it."""
        scale = 1 / (sigma**2 + 1).sqrt()
        one = torch.ones_like(sigma)
        c_skip, c_out = {
            "epsilon": (one, -sigma),
            "v": (scale**2, -sigma * scale),
            "x0": (torch.zeros_like(sigma), one),
        }[self.prediction]
        timestep = self.timestep(sigma)
        if self.rescale_timesteps:
            timestep = timestep * (1000 / self.T)
        return Coefficients(c_skip=c_skip, c_out=c_out, c_in=scale, c_noise=timestep)

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """``(t + 1) / T`` at the noise level of timestep t, straight lines between; 0 at 0."""
        levels = placed(self.levels, sigma.device, sigma.dtype)
        return _interpolate(sigma, torch.cat([levels.new_zeros(1), levels])) / self.T


def between(
    levels: Float[Tensor, " T"], t: Float[Tensor, "*s"], *, in_log: bool = False
) -> Float[Tensor, "*s"]:
    """Noise levels of timesteps that need not be whole.

    Args:
        levels: of all timesteps, increasing.
        t: timesteps, 0 <= t <= T - 1.
        in_log: whether ln sigma, rather than sigma, is a straight line between two of them.
    """
    below, above = levels[t.floor().long()], levels[t.ceil().long()]
    share = t - t.floor()
    if in_log:
        # A power of the ratio: the levels of whole timesteps stay what they are, to the last bit.
        return below * (above / below) ** share
    return below + share * (above - below)


def _interpolate(x: Float[Tensor, "*s"], knots: Float[Tensor, " N"]) -> Float[Tensor, "*s"]:
    """The fractional index of ``x`` in increasing ``knots``, at most an end's."""
    x = x.clamp(knots[0], knots[-1])
    left = (torch.searchsorted(knots, x.contiguous(), right=True) - 1).clamp(
        0, max(len(knots) - 2, 0)
    )
    right = (left + 1).clamp(max=len(knots) - 1)
    width = (knots[right] - knots[left]).clamp(min=torch.finfo(x.dtype).tiny)
    return left.to(x.dtype) + (x - knots[left]) / width
