"""DDPM's ancestral sampling."""

import math
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.diffusion.discrete import Chain
from genlab.diffusion.noise_levels import FIXED_VARIANCES
from genlab.errors import ConfigError, nearest
from genlab.samplers.base import Grid, Solver, StepResult
from genlab.samplers.solvers.churn import fresh_noise, refuse_repeats


@dataclass(frozen=True, kw_only=True)
class DDPM(Solver):
    """A random step along the reverse Markov chain: its mean from x0, its variance from the model.

    Choose it for models with a learned variance (ADM, improved DDPM, DiT), with the respaced
    schedule and about 250 steps; `DDIM` and `Heun` need far fewer.

    Order 1: the mean of a step is that of an Euler step, of the stochastic equation. Costs one
    network evaluation a step. Noise is drawn on every step; that of the last one is not used.

    Attributes:
        clip: whether x0 is clipped to [-1, 1] in every step: for models of pixels, not of latents.
        variance: None is the model's own; ``fixed_small`` and ``fixed_large`` overrule it.

    Source: Ho et al. (arXiv:2006.11239), Algorithm 2, with the learned variance of Nichol and
    Dhariwal (arXiv:2102.09672), Eq. 15, and classifier guidance as in Dhariwal and Nichol
    (arXiv:2105.05233), Algorithm 1, whose gradient the official code takes at x, not at the mean.
    """

    order: ClassVar[int] = 1
    suits: ClassVar[str] = "any; models with a learned variance (ADM, iDDPM, DiT)"

    clip: bool = False
    variance: str | None = None

    def __post_init__(self) -> None:
        if self.variance is not None and self.variance not in FIXED_VARIANCES:
            raise ConfigError(
                "the ddpm solver's variance is a fixed one, or none for the model's own, got "
                f"{self.variance!r}; {nearest(self.variance, FIXED_VARIANCES)}"
            )

    @override
    def draws(self) -> int:
        return 1

    def start_std(self, sigma: float) -> float:
        """That of unit noise in the scaled frame, where such chains begin."""
        return math.hypot(1.0, sigma)

    def begin(self, grid: Grid) -> "_Run":
        """The Markov chain over the levels.

        Levels may rise again where the run then comes down the same ones (as when inpainting goes
        back and forth): the chain is over all of them.

        Raises:
            ConfigError: levels rise again and come down others, which no Markov chain does; or the
                model predicts a variance between two bounds, and two levels are equal.
        """
        if (self.variance or grid.noise_levels.variance) == "learned_range":
            refuse_repeats("ddpm with a learned variance", grid.sigmas)
        ends = grid.sigmas.tolist()
        if not grid.restarts:
            chain = Chain(grid.sigmas[:-1].flip(0))
            return _Run(chain=chain, places=tuple(range(len(chain)))[::-1])
        chain = Chain(grid.sigmas[:-1].unique())
        sigmas = chain.sigmas.tolist()
        places = [sigmas.index(level) for level in ends[:-1]]
        below = [0.0, *sigmas]
        for place, level, following in zip(places, ends, ends[1:], strict=False):
            if following <= level and following != below[place]:
                raise ConfigError(
                    "ddpm goes down a Markov chain and cannot take levels that rise again; take "
                    "heun, or a schedule without restarts"
                )
        return _Run(chain=chain, places=tuple(places))

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: "_Run"
    ) -> StepResult:
        """Go from ``step.level`` to ``step.sigma_next``.

        Raises:
            ConfigError: the model predicts a variance, and a guidance does not pass it on.
        """
        prediction = denoiser.predict(x, step.level)
        x0 = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
        chain, index = memory.chain, memory.places[step.index]
        kind = self.variance or denoiser.noise_levels.variance
        log_variance = chain.log_variance(index, kind, prediction.variance)
        # Both frames agree up to the scale of the level: sqrt(alpha_bar) x is the scaled one.
        scale, scale_next = math.hypot(1, step.level), math.hypot(1, step.sigma_next)
        mean = x0 + float(chain.shrinkage[index]) * (x - x0)
        if prediction.score is not None:
            mean = mean + log_variance.exp() * (scale * scale_next) * prediction.score
        fresh = fresh_noise(x, step)
        std = (0.5 * log_variance).exp() * scale_next
        x = mean + std * fresh if step.sigma_next > 0 else mean
        return StepResult(x=x, x0=x0, memory=memory)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The Markov chain of a run, and the place in it that each step starts from."""

    chain: Chain
    places: tuple[int, ...]
