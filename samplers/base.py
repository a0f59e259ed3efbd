"""The contracts of sampling: schedule, solver, guidance, sampler, and the steps of a run."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab import config
from genlab.diffusion.denoiser import (
    ConditionedDenoiser,
    State,
    StepInfo,
)
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import SamplingError
from genlab.registry import class_path
from genlab.samplers.parts import Part
from genlab.samplers.registries import SCHEDULES as SCHEDULES
from genlab.samplers.registries import SOLVERS as SOLVERS
from genlab.samplers.tallies import Tallies

PICTURES = ("estimate", "state")
"""What an animation may show of a step: what the images will be, as the model sees it there, or
the noisy state itself."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of sampling, as progress bars, callbacks and animations get it.

    Attributes:
        index: number of the step that just ended, 0 <= index < num_steps.
        num_steps: steps in this run.
        x: the state after the step, (B, C, H, W); that of the last step holds the images.
        tallies: what the run has counted up to here, beside network evaluations.
    """

    index: int
    num_steps: int
    x: State
    tallies: Tallies = field(default_factory=dict)

    def picture(self, of: str = "estimate") -> State:
        """The step as a picture, in [-1, 1] up to overshoot.

        Args:
            of: one of `PICTURES`, where the two differ.
        """
        return self.x

    @property
    def caption(self) -> str:
        """The progress of the run, as a caption."""
        return f"{self.index + 1} of {self.num_steps}"


@dataclass(frozen=True, kw_only=True)
class SolverStep(StepInfo, Step):
    """A step of a solver, as the loop yields it; ``x`` is in the unscaled frame.

    Attributes:
        x0: the last denoised estimate inside the step, (B, C, H, W).
    """

    x0: State

    def picture(self, of: str = "estimate") -> State:
        """The denoised estimate, or the state in unit variance: pure noise fades into the picture.

        The last step's is the image itself.
        """
        if of == "state" or self.sigma_next == 0:
            return self.x.to(torch.float32) * (1 + self.sigma_next**2) ** -0.5
        return self.x0.to(torch.float32)

    @property
    def caption(self) -> str:
        """The noise level reached."""
        return f"sigma {self.sigma_next:.3g}"


S = TypeVar("S", bound=Step)

Hook = Callable[[Any], State | None]
"""Called with each step as it ends. A tensor that it returns takes the place of the step's state:
the run goes on from there, and the last one's is the result."""


def call_hooks(step: S, hooks: Sequence[Hook]) -> S:
    """Show a step to hooks in their order, each with what the ones before it made of the state."""
    for hook in hooks:
        x = hook(step)
        if x is not None:
            step = replace(step, x=x)
    return step


Layers = Sequence[tuple[str, Mapping[str, Any]]]


class AnySampler(ABC):
    """A sampler of any family, typed and ready to run; configurations are turned into it once.

    Diffusion has `genlab.samplers.sampler.Sampler`, the other families have their own.
    """

    @classmethod
    @abstractmethod
    def from_layers(
        cls,
        layers: Layers,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
    ) -> "AnySampler":
        """Make a sampler of configurations, each over the ones before it; defaults lie below them.

        Args:
            layers: where each comes from, for messages, and what it says; see `sampler_layers`.
            num_steps: solver steps; None keeps them.
            guidance_scale: of guidance by the null class; 1.0 switches it off, None keeps it.
            guidance_interval: (low, high), the noise levels between which the guidance acts: low <
                sigma <= high; None keeps it.

        Raises:
            ConfigError: a key or an option is unknown, out of range, of the wrong type, or means
                nothing to the family.
            UnknownNameError: nothing is registered under a name.
        """

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The whole configuration that says the same, as plain values."""

    def left_out(self) -> Mapping[str, Any]:
        """Dotted key below ``sampler`` -> value of every option that `config` leaves out."""
        return {}

    def with_scales_of(self, own: "AnySampler | None") -> "AnySampler":
        """The same with a scale for each guidance that was named without one.

        Args:
            own: the model's own sampler, whose scale it takes; None where this is it.

        Raises:
            ConfigError: there is no scale to take, and without one the guidance would do nothing.
        """
        return self

    @abstractmethod
    def describe(self) -> str:
        """A short description."""

    @property
    def parts(self) -> Mapping[str, Sequence[Part]]:
        """Kind -> the models that it uses beside the one that is sampled, each of them once."""
        return {}

    def load_parts(self) -> "AnySampler":
        """The same sampler with parts that are named read from where their names point to."""
        return self


SamplerLike = str | Mapping[str, Any] | AnySampler | None
"""A preset's name, a (partial) sampler config, a sampler, or None for the model's own."""


def sampler_layers(sampler: SamplerLike, own: Mapping[str, Any] | None) -> Layers:
    """Layers for `genlab.config.fill`: a preset alone, or changes to a model's own sampler.

    Raises:
        UnknownNameError: there is no such preset.
    """
    if isinstance(sampler, str):
        return [(f"the sampler preset {sampler!r}", config.read_preset("sampler", sampler))]
    if isinstance(sampler, AnySampler):
        return [("the sampler", sampler.config)]
    return [("the model's own sampler", own or {}), ("the sampler", sampler or {})]


@runtime_checkable
class Schedule(Protocol):
    """Chooses the noise levels of a run: a frozen dataclass with ``num_steps`` among its fields.

    It may say with a class variable ``suits`` which models it is for, as a `Solver` does.
    """

    @property
    def num_steps(self) -> int:
        """Solver steps, >= 1."""
        ...

    def sigma_range(self, noise_levels: NoiseLevels) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the run: the schedule's, clipped to what the model knows."""
        ...

    def __call__(self, noise_levels: NoiseLevels) -> Float64[Tensor, " levels"]:
        """``num_steps`` noise levels and a final 0, on the CPU, not yet rounded.

        They decrease, but for a level that lies above the one before it: there the run adds noise
        in place of a solver's step (a restart).
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The noise levels of a run.

    Attributes:
        sigmas: already rounded to what the model knows, with a final 0; on the CPU.
        sigma_range: (sigma_min, sigma_max) that the schedule was made for.
        noise_levels: what the model knows.
    """

    sigmas: Float64[Tensor, " levels"]
    sigma_range: tuple[float, float]
    noise_levels: NoiseLevels

    @property
    def restarts(self) -> bool:
        """Whether some level lies above the one before it."""
        return bool((self.sigmas.diff() > 0).any())

    @classmethod
    def of(cls, schedule: Schedule, noise_levels: NoiseLevels) -> "Grid":
        """The levels that a schedule picks for a model.

        Raises:
            ConfigError: the schedule and the model do not fit.
            SamplingError: what the schedule returns is no row of noise levels.
        """
        sigmas = schedule(noise_levels)
        _check_levels(schedule, sigmas)
        return cls(
            sigmas=torch.cat([noise_levels.round_sigma(sigmas[:-1]), sigmas[-1:]]),
            sigma_range=schedule.sigma_range(noise_levels),
            noise_levels=noise_levels,
        )


def _check_levels(schedule: Schedule, sigmas: Any) -> None:
    levels = sigmas.tolist() if isinstance(sigmas, Tensor) and sigmas.ndim == 1 else []
    if len(levels) < 2 or levels[-1] != 0 or not all(0 < level < inf for level in levels[:-1]):
        raise SamplingError(
            f"the schedule {class_path(type(schedule))} must return a row of noise levels > 0 and a"
            f" final 0, got {sigmas}"
        )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of a solver's step.

    Attributes:
        x: the state at ``sigma_next``, (B, C, H, W).
        x0: the last denoised estimate inside the step, (B, C, H, W).
        memory: what the solver wants to be given with its next step.
    """

    x: State
    x0: State
    memory: Any = None


class Solver(ABC):
    """Takes one step of a run: a frozen dataclass whose options are its fields.

    The loop outside (`genlab.samplers.loop`) owns the run: it announces steps, lets hooks replace
    the state, and asks for the next one.

    Attributes:
        order: order of convergence of a whole run, its own start included; tests measure it.
        on_grid: whether the model is evaluated at the levels of the run alone.
        suits: which diffusion models it is for, in a few words.
    """

    order: ClassVar[int]
    on_grid: ClassVar[bool] = True
    suits: ClassVar[str] = "any"

    @abstractmethod
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: Any
    ) -> StepResult:
        """Go from ``step.level`` to ``step.sigma_next``.

        Args:
            denoiser: the model, guided or not, with the condition of the batch.
            x: noisy images at ``step.level``, in the dtype that the state is kept in. It need not
                be what the step before returned: a hook may have replaced it.
            step: where the run stands.
            memory: what the step before returned, for the first one what `begin` did.
        """

    def route(self, grid: Grid) -> Grid:
        """The noise levels that a run visits: those of the schedule, unless a solver adds some.

        Raises:
            ConfigError: the levels leave no room for those that the solver adds.
        """
        return grid

    def begin(self, grid: Grid) -> Any:
        """The initial memory of a run.

        Raises:
            ConfigError: the solver cannot take steps between these levels.
        """
        return None

    def nfe(self, num_steps: int) -> int | None:
        """Evaluations of the model in a run over a schedule of ``num_steps`` steps.

        None where they depend on the images: such a run tells them when it has ended.
        """
        return num_steps

    def draws(self) -> int:
        """Draws of noise in each step that ends above 0, or at each restart where there are some.

        A solver without any is deterministic.
        """
        return 0

    def start_std(self, sigma: float) -> float:
        """Standard deviation of the start in the unscaled frame, for a first level ``sigma``."""
        return sigma

    def renoise(self, x: State, step: StepInfo) -> State:
        """Bring ``x`` up to a level above its own by noise: a restart."""
        fresh = step.noise.randn(x.shape[1:], torch.float64).to(x.dtype)
        return x + math.sqrt(step.sigma_next**2 - step.level**2) * fresh

    def raise_level(self, level: float, num_steps: int) -> float:
        """The noise level that a step from ``level`` starts from, >= ``level``."""
        return level

    def raise_levels(self, grid: Grid) -> list[float]:
        """The same for each step of a run, not yet rounded."""
        ends = grid.sigmas.tolist()
        return [
            self.raise_level(level, len(ends) - 1) if following < level else level
            for level, following in itertools.pairwise(ends)
        ]

    def starts(self, grid: Grid) -> list[float]:
        """Where each step starts from: its level, raised, and rounded to what the model knows."""
        levels = grid.sigmas[:-1].tolist()
        starts = self.raise_levels(grid)
        if starts == levels:
            return starts
        raised = torch.tensor(starts, dtype=torch.float64)
        rounded: list[float] = grid.noise_levels.round_sigma(raised).tolist()
        return rounded
