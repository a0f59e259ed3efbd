"""The contracts of this room: schedule, solver, guidance, sampler, and what sampling reports."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab import config
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import (
    ConditionedDenoiser,
    Denoiser,
    Prediction,
    Sigma,
    State,
    StepInfo,
)
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.diffusion.spaces import space_of
from genlab.errors import ConfigError
from genlab.registry import Registry
from genlab.samplers.parts import Counted, Part


@dataclass(frozen=True, kw_only=True)
class Step:
    """What sampling yields after each step; progress bars, callbacks and films hang on it.

    Attributes:
        index: number of the step that just ended, 0 <= index < num_steps.
        num_steps: steps in this run.
        x: the state after the step, (B, C, H, W); that of the last step holds the images.
    """

    index: int
    num_steps: int
    x: State

    def picture(self) -> State:
        """The state as people would look at it, in [-1, 1] up to overshoot."""
        return self.x

    @property
    def caption(self) -> str:
        """Where the run stands, in words for below a picture."""
        return f"{self.index + 1} of {self.num_steps}"


@dataclass(frozen=True, kw_only=True)
class SolverStep(StepInfo, Step):
    """What the loop yields after each step of a solver; ``x`` is in the unscaled frame.

    Attributes:
        x0: the last denoised estimate inside the step, (B, C, H, W).
    """

    x0: State

    def picture(self) -> State:
        """The state in unit variance: pure noise fades into the picture."""
        return self.x.to(torch.float32) * (1 + self.sigma_next**2) ** -0.5

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
    """How to sample, typed and ready to run: what text becomes once, at the border.

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
    ) -> "AnySampler":
        """Make a sampler of configurations, each over the ones before it; defaults lie below them.

        Args:
            layers: where each comes from, for messages, and what it says; see `sampler_layers`.
            num_steps: solver steps; None keeps them.
            guidance_scale: of guidance by the null class; 1.0 switches it off, None keeps it.

        Raises:
            ConfigError: a key or an option is unknown, out of range, of the wrong type, or means
                nothing to the family.
            UnknownNameError: nothing is registered under a name.
        """

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The whole configuration that says the same, as plain values."""

    @abstractmethod
    def describe(self) -> str:
        """What matters most of it, in a few words."""

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
    """What `genlab.config.fill` makes a sampler of: a preset alone, or changes over a model's own.

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
    """Chooses the noise levels of a run: a frozen dataclass with ``num_steps`` among its fields."""

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

    @classmethod
    def of(cls, schedule: Schedule, noise_levels: NoiseLevels) -> "Grid":
        """The levels that a schedule picks for a model.

        Raises:
            ConfigError: the schedule and the model do not fit.
        """
        sigmas = schedule(noise_levels)
        return cls(
            sigmas=torch.cat([noise_levels.round_sigma(sigmas[:-1]), sigmas[-1:]]),
            sigma_range=schedule.sigma_range(noise_levels),
            noise_levels=noise_levels,
        )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Where a solver's step leads.

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
        on_grid: whether the model is asked at the levels of the run alone.
    """

    order: ClassVar[int]
    on_grid: ClassVar[bool] = True

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

    def begin(self, grid: Grid) -> Any:
        """The memory that a run starts with.

        Raises:
            ConfigError: the solver cannot take steps between these levels.
        """
        return None

    def nfe(self, num_steps: int) -> int:
        """Evaluations of the model in a run of ``num_steps`` steps."""
        return num_steps

    def start_std(self, sigma: float) -> float:
        """Standard deviation of the start in the unscaled frame, for a first level ``sigma``."""
        return sigma

    def raise_level(self, level: float, num_steps: int) -> float:
        """The noise level that a step from ``level`` starts from, >= ``level``."""
        return level

    def starts(self, grid: Grid) -> list[float]:
        """Where each step starts from: its level, raised, and rounded to what the model knows."""
        *levels, _ = ends = grid.sigmas.tolist()
        starts = [
            self.raise_level(level, len(levels)) if following < level else level
            for level, following in itertools.pairwise(ends)
        ]
        if starts == levels:
            return starts
        raised = torch.tensor(starts, dtype=torch.float64)
        rounded: list[float] = grid.noise_levels.round_sigma(raised).tolist()
        return rounded


@dataclass(frozen=True, kw_only=True)
class When:
    """When a guidance acts: where every window that is given holds. Outside it costs nothing.

    Attributes:
        sigma: (low, high), low < noise level <= high.
        time: (low, high), low <= time <= high in the model's own time: 1 is noise, 0 data.
        steps: (low, high) in shares of the run: from step int(low N) to before step int(high N).

    All are of the level that a step starts from, before churn, and hold for the whole step.

    Source: Kynkäänniemi et al. (arXiv:2404.07724), for ``sigma``.
    """

    sigma: tuple[float, float] | None = None
    time: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, window in vars(self).items():
            if window is not None and not 0 <= window[0] <= window[1]:
                raise ConfigError(f"when.{name} needs 0 <= low <= high, got {list(window)}")
        for name, window in (("time", self.time), ("steps", self.steps)):
            if window is not None and window[1] > 1:
                raise ConfigError(f"when.{name} lies between 0 and 1, got {list(window)}")

    def holds(self, step: StepInfo, noise_levels: NoiseLevels) -> bool:
        """Whether a step lies in every window."""
        if self.sigma is not None and not self.sigma[0] < step.level <= self.sigma[1]:
            return False
        if self.time is not None:
            time = float(noise_levels.time(torch.tensor(step.level, dtype=torch.float64)))
            if not self.time[0] <= time <= self.time[1]:
                return False
        if self.steps is None:
            return True
        first, end = (int(share * step.num_steps) for share in self.steps)
        return first <= step.index < end


ALWAYS = When()


class Guidance(Denoiser):
    """A denoiser around a denoiser. A guidance is its `guide`; the rest is here.

    Args:
        inner: what is guided.
        when: when it acts; otherwise ``inner`` alone is asked.
        space: in which predictions are combined, one of `genlab.diffusion.spaces.SPACES`; it
            matters where the guidance is not affine.
        others: denoisers, or other models, that it asks beside ``inner``: they hear of steps and
            are counted.
    """

    def __init__(
        self,
        inner: Denoiser,
        *,
        when: When = ALWAYS,
        space: str = "x0",
        others: Sequence[Counted] = (),
    ) -> None:
        self.inner, self.when, self.others = inner, when, tuple(others)
        self.space = space_of(space)
        self.noise_levels = inner.noise_levels
        self.num_classes = inner.num_classes
        self.has_null_class = inner.has_null_class
        self.active = True  # until a run says where it stands

    @abstractmethod
    def guide(self, x: State, sigma: Sigma, conditions: Sequence[Condition]) -> list[Prediction]:
        """Predict the images under each of the conditions.

        What is asked of ``inner`` in one call of `predict_each` runs as one batch.

        Args:
            x: noisy images, (B, C, H, W), in the unscaled frame.
            sigma: noise level of the batch or of each sample.
            conditions: of the whole batch: one, or more where a guidance around this one asks.
        """

    def __call__(self, x: State, sigma: Sigma, condition: Condition) -> State:
        """Denoise; see `Denoiser.__call__`."""
        return self.predict(x, sigma, condition).estimate(sigma)

    def predict(self, x: State, sigma: Sigma, condition: Condition) -> Prediction:
        """Denoise and give the variance, too; see `Denoiser.predict`."""
        return self.predict_each(x, sigma, [condition])[0]

    def predict_each(
        self, x: State, sigma: Sigma, conditions: Sequence[Condition]
    ) -> list[Prediction]:
        """Predict under several conditions; see `Denoiser.predict_each`."""
        ask = self.guide if self.active else self.inner.predict_each
        return ask(x, sigma, conditions)

    def begin_step(self, step: StepInfo) -> None:
        """Decide whether to act in a step, and pass it on."""
        self.active = self.when.holds(step, self.noise_levels)
        for denoiser in (self.inner, *self.others):
            if isinstance(denoiser, Denoiser):
                denoiser.begin_step(step)

    @property
    def evaluations(self) -> int:  # type: ignore[override]  # counted where the networks are
        """Network evaluations so far, in rows, of every model below; each of them counts once."""
        return sum(model.evaluations for model in self._models())

    def _models(self) -> list[Counted]:
        found: dict[int, Counted] = {}
        for below in (self.inner, *self.others):
            models = below._models() if isinstance(below, Guidance) else [below]
            found |= {id(model): model for model in models}
        return list(found.values())


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(ABC):
    """The options of a guidance: a frozen dataclass that wraps a denoiser when it is called.

    Attributes:
        when: when it acts; by default always.
        parts: option -> kind of the model that it holds (`genlab.samplers.parts`). In a config it
            is a name or a folder; it is loaded before a run, moved with the model, and its hash is
            part of the run's identity.
    """

    parts: ClassVar[Mapping[str, str]] = {}

    when: When = field(default_factory=When)

    @abstractmethod
    def __call__(self, denoiser: Denoiser) -> Guidance:
        """Wrap a denoiser.

        Raises:
            ConfigError: the guidance makes no sense for this model.
        """


SOLVERS: Registry[type[Solver]] = Registry(
    "genlab.solvers",
    {
        "euler": "genlab.samplers.solvers.euler:Euler",
        "heun": "genlab.samplers.solvers.heun:Heun",
        "general": "genlab.samplers.solvers.general:General",
        "ddpm": "genlab.samplers.solvers.ddpm:DDPM",
        "ddim": "genlab.samplers.solvers.ddim:DDIM",
        "dpm2": "genlab.samplers.solvers.dpm2:DPM2",
        "dpm2-ancestral": "genlab.samplers.solvers.dpm2:DPM2Ancestral",
        "lms": "genlab.samplers.solvers.adams_bashforth:AdamsBashforth",
        "ipndm": "genlab.samplers.solvers.adams_bashforth:IPNDM",
        "deis": "genlab.samplers.solvers.adams_bashforth:DEIS",
        "dpmpp": "genlab.samplers.solvers.multistep:DPMSolverPP",
        "dpmpp-2s": "genlab.samplers.solvers.single_step:DPMSolverPP2S",
        "dpmpp-sde": "genlab.samplers.solvers.single_step:DPMSolverPPSDE",
        "unipc": "genlab.samplers.solvers.multistep:UniPC",
        "euler-ancestral": "genlab.samplers.solvers.euler_ancestral:EulerAncestral",
        "flow": "genlab.samplers.solvers.flow:FlowODE",
        "flow-sde": "genlab.samplers.solvers.flow_sde:FlowSDE",
    },
    aliases={"two-stage": "general", "dpmpp-2m": "dpmpp"},
)
SCHEDULES: Registry[type[Schedule]] = Registry(
    "genlab.schedules",
    {
        "karras": "genlab.samplers.schedules.karras:Karras",
        "vp": "genlab.samplers.schedules.vp:VP",
        "ve": "genlab.samplers.schedules.ve:VE",
        "iddpm": "genlab.samplers.schedules.iddpm:IDDPM",
        "cosine": "genlab.samplers.schedules.cosine:Cosine",
        "linear": "genlab.samplers.schedules.karras:Linear",
        "respaced": "genlab.samplers.schedules.respaced:Respaced",
        "timesteps": "genlab.samplers.schedules.timesteps:Timesteps",
        "flow": "genlab.samplers.schedules.flow_times:FlowTimes",
    },
)
GUIDANCE: Registry[type[GuidanceOptions]] = Registry(
    "genlab.guidance",
    {
        "cfg": "genlab.samplers.guidance.classifier_free:ClassifierFree",
        "classifier": "genlab.samplers.guidance.classifier:ClassifierGuidance",
    },
)
