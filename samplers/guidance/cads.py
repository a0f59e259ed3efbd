"""CADS, the condition-annealed diffusion sampler: variety by noise on the class embedding."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, Prediction, Sigma, State, StepInfo
from genlab.diffusion.noise import Noise
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError, SamplingError, nearest
from genlab.registry import class_path
from genlab.samplers.base import Grid
from genlab.samplers.guidance.annealing import cads_gamma, check_schedule, clock
from genlab.samplers.guidance.base import Guidance, GuidanceOptions, model_below

BRANCHES = ("condition", "both")
"""What may be annealed: the class alone, or what stands for no class, too."""

STREAMS = {"condition": "cads", "null": "cads null"}
"""Fork of the run's noise that each branch draws from."""


@dataclass(frozen=True, kw_only=True)
class CADS(GuidanceOptions):
    """Condition annealing: noise on the class embedding, which decreases during sampling.

    With the time t from 1 (noise) to 0 (data) and the class embedding y of a sample,
    ``gamma = (tau2 - t) / (tau2 - tau1)`` within [0, 1],
    ``y' = sqrt(gamma) y + s sqrt(1 - gamma) n`` with unit normal n, and what the network sees is
    ``psi ((y' - mean y') / std y' std y + mean y) + (1 - psi) y'``.

    Choose it where strong guidance draws the same few images again and again: it gives variety back
    at a small loss of class consistency. It wants 20 steps and more, and settings of its own for
    each model and guidance scale; the defaults are a starting point for class-conditional models.
    It must be the last one in the stack, for all guidance below sees the class through it.

    Costs no network evaluation, and one draw of the embedding's width a step. The draws come from a
    stream of their own and never move the solver's noise; all evaluations of a step see the same.
    Runs of one step are refused: they would never see the class. So is ``time: step`` for restarts,
    which go through the same noise levels twice; take ``time: model`` there.

    Attributes:
        tau1: the time below which the class is whole, 0 <= tau1 <= tau2: the lower, the more
            variety and the less of the class.
        tau2: the time above which the class is hidden, tau2 <= 1.
        s: standard deviation of the noise, >= 0, to be seen beside that of the embedding.
        psi: how far mean and standard deviation of the embedding are given back to it, in [0, 1]: 1
            is safe, less gives more variety and may leave what the network knows.
        time: ``step``, 1 - index / num_steps as in the paper, or ``model``, the model's own time of
            the noise level.
        branches: ``condition``, or ``both``: the embedding of the null class is annealed, too, with
            noise of its own.

    Source: CADS (Sadat et al., arXiv:2310.17347); mean and standard deviation (unbiased) are those
    of each sample, so that a batch does not change its images. An embedding without any spread is
    not rescaled.
    """

    outermost: ClassVar[bool] = True
    suits: ClassVar[str] = "with classes"
    below: ClassVar[Sequence[Mapping[str, Any]]] = ({"name": "cfg", "scale": 4},)

    tau1: float = 0.5
    tau2: float = 0.9
    s: float = 0.15
    psi: float = 1.0
    time: str = "step"
    branches: str = "condition"

    def __post_init__(self) -> None:
        check_schedule("CADS", self.tau1, self.tau2, self.time)
        if not 0 <= self.s < math.inf:
            raise ConfigError(f"CADS needs s >= 0, got {self.s}")
        if not 0 <= self.psi <= 1:
            raise ConfigError(f"CADS needs 0 <= psi <= 1, got {self.psi}")
        if self.branches not in BRANCHES:
            raise ConfigError(
                f"CADS knows no branches {self.branches!r}; {nearest(self.branches, BRANCHES)}"
            )

    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: the model has no classes, or ``both`` is asked for and no null class.
        """
        if model_below(denoiser).num_classes == 0:  # a classifier brings classes, no embedding
            raise ConfigError(
                "CADS anneals the class that a model is told, and this one has no classes; remove "
                "cads from sampler.guidance"
            )
        if self.branches == "both" and not denoiser.has_null_class:
            raise ConfigError(
                "CADS with branches: both needs a model trained with label dropout, and this one "
                "has no null class; take branches: condition"
            )
        return AnnealedDenoiser(denoiser, self)

    @override
    def check_run(self, grid: Grid) -> None:
        """Look at the noise levels of a run, before it begins.

        Raises:
            ConfigError: the run has one step, or none that gets the class, or noise levels that
                rise while time is counted in steps.
        """
        super().check_run(grid)
        levels = grid.sigmas.tolist()
        num_steps = len(levels) - 1
        if num_steps == 1:
            raise ConfigError(
                "CADS hides the class in the first step, and this run has no other; take more steps"
                " or remove cads from sampler.guidance"
            )
        if self.time == "step" and grid.restarts:
            raise ConfigError(
                "CADS by steps means nothing in a run with restarts, which comes back to noise "
                "levels that it has left; set time: model"
            )
        steps = [(level, index, num_steps, grid.noise_levels) for index, level in enumerate(levels)]
        if all(self.when.covers(*step) and self.gamma(*step) == 0 for step in steps[:-1]):
            raise ConfigError(
                f"CADS hides the class in all {num_steps} steps with tau2 = {self.tau2:g}; raise "
                "tau1 and tau2, or take more steps"
            )

    def gamma(self, level: float, index: int, num_steps: int, noise_levels: NoiseLevels) -> float:
        """The share of the class at the step of this number, from this level."""
        time = clock(level, index, num_steps, noise_levels, self.time)
        return cads_gamma(time, self.tau1, self.tau2)


class AnnealedDenoiser(Guidance):
    """A denoiser whose class embedding is annealed; see `CADS`."""

    def __init__(self, inner: Denoiser, options: CADS) -> None:
        super().__init__(inner, when=options.when)
        self.options = options
        self._gamma: float | None = None  # until a run says where it stands
        self._noise: Noise | None = None
        self._streams: dict[str, Noise] = {}
        self._draws: dict[tuple[str, int], Tensor] = {}

    @override
    def begin_step(self, step: StepInfo) -> None:
        """A run draws its own noise, and each of its steps anew."""
        super().begin_step(step)
        # Forks of one key are equal, so that a run needs a single one for its draws to differ.
        if step.index == 0 or step.noise is not self._noise:
            self._noise, self._streams = step.noise, {}
        self._draws = {}
        self._gamma = self.options.gamma(step.level, step.index, step.num_steps, self.noise_levels)

    @override
    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """Predict the images under each of the conditions.

        Raises:
            SamplingError: no step has been announced, its noise is not of this batch, or the model
                has no class embedding.
        """
        if self._gamma is None:
            raise SamplingError(
                "CADS draws noise for each step of a run, and none has begun; call begin_step first"
            )
        if self._gamma == 1 or conditions[0].labels is None:
            return self.inner.predict_each(x, sigma, conditions)
        annealed = [self._anneal(condition, self._gamma) for condition in conditions]
        predictions = self.inner.predict_each(x, sigma, annealed)
        if not self._draws:
            raise SamplingError(
                "CADS has no effect on this model: no denoiser below it hands its class embedding "
                f"to Condition.transform_embedding ({class_path(type(self.inner))} is the next)"
            )
        return predictions

    def _anneal(self, condition: Condition, gamma: float) -> Condition:
        """The condition with noise on its embedding, one draw a step for each branch."""
        s, psi = self.options.s, self.options.psi
        assert condition.labels is not None
        has_class = _has_class(condition.labels)

        def of_null(y: Tensor) -> Tensor:
            return anneal_embedding(y, self._draw("null", y), gamma, s, psi)

        def of_class(y: Tensor) -> Tensor:
            annealed = anneal_embedding(y, self._draw("condition", y), gamma, s, psi)
            # A sample without a class is the same in both branches, and so guided nowhere.
            rest = of_null(y) if self.options.branches == "both" else y
            return torch.where(has_class.to(y.device, non_blocking=True)[:, None], annealed, rest)

        null = of_null if self.options.branches == "both" else None
        return condition.with_embedding_transform(of_class, null=null)

    def _draw(self, branch: str, y: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """The noise of this step; models whose embeddings are of one width see the same."""
        key = (branch, y.shape[1])
        if key not in self._draws:
            assert self._noise is not None
            name = STREAMS[branch]
            if name not in self._streams:
                self._streams[name] = self._noise.fork(name)
            self._draws[key] = self._streams[name].randn(y.shape[1:])
        draw = self._draws[key]
        if len(draw) != len(y):
            raise SamplingError(
                f"CADS needs a noise stream for each of the {len(y)} samples, and this run has "
                f"{len(draw)}; runs without noise, as inversion is, cannot be annealed"
            )
        return draw.to(y.device, non_blocking=True)


def anneal_embedding(
    y: Float[Tensor, "B E"], noise: Float[Tensor, "B E"], gamma: float, s: float, psi: float
) -> Float[Tensor, "B E"]:
    """Noise on embeddings, rescaled to the mean and standard deviation that each sample's had.

    Args:
        y: the embeddings.
        noise: unit normal.
        gamma: the share of the embedding that is left, in [0, 1].
        s: standard deviation of the noise, >= 0.
        psi: share of the rescaled embedding in what is returned, in [0, 1].

    Returns:
        In the dtype of ``y``; in float32 inside where that is narrower.

    Source: CADS (arXiv:2310.17347).
    """
    dtype = torch.promote_types(y.dtype, torch.float32)
    clean = y.to(dtype)
    noised = math.sqrt(gamma) * clean + s * math.sqrt(1 - gamma) * noise.to(dtype)
    if psi == 0 or y.shape[1] == 1:  # a single number has no spread
        return noised.to(y.dtype)
    std, mean = torch.std_mean(noised, dim=1, keepdim=True)
    own_std, own_mean = torch.std_mean(clean, dim=1, keepdim=True)
    rescaled = (noised - mean) / std * own_std + own_mean
    # What is constant has a spread of rounding errors, which are not to be blown up.
    spread = std > torch.finfo(dtype).eps * noised.abs().amax(1, keepdim=True)
    mixed = torch.where(spread & std.isfinite(), psi * rescaled + (1 - psi) * noised, noised)
    return mixed.to(y.dtype)


def _has_class(labels: Tensor) -> Bool[Tensor, " B"]:
    """Which samples have a class; soft labels are rows that are zero without one."""
    return (labels != 0).any(1) if labels.is_floating_point() else labels >= 0
