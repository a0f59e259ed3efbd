"""The contracts of this room: schedule, solver, guidance, and what sampling reports."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, StepInfo
from genlab.diffusion.noise import Noise
from genlab.registry import Registry


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
    x: Float[Tensor, "B C H W"]

    def picture(self) -> Float[Tensor, "B C H W"]:
        """The state as people would look at it, in [-1, 1] up to overshoot."""
        return self.x

    @property
    def caption(self) -> str:
        """Where the run stands, in words for below a picture."""
        return f"{self.index + 1} of {self.num_steps}"


@dataclass(frozen=True, kw_only=True)
class SolverStep(Step):
    """What a solver yields after each step; ``x`` is in the unscaled frame.

    Attributes:
        sigma: noise level that the step started from.
        sigma_next: noise level of ``x``.
        x0: the last denoised estimate inside the step, (B, C, H, W).
    """

    sigma: float
    sigma_next: float
    x0: Float[Tensor, "B C H W"]

    def picture(self) -> Float[Tensor, "B C H W"]:
        """The state in unit variance: pure noise fades into the picture."""
        return self.x.to(torch.float32) * (1 + self.sigma_next**2) ** -0.5

    @property
    def caption(self) -> str:
        """The noise level reached."""
        return f"sigma {self.sigma_next:.3g}"


@runtime_checkable
class Schedule(Protocol):
    """Chooses the noise levels of a run: a frozen dataclass with ``num_steps`` among its fields."""

    @property
    def num_steps(self) -> int:
        """Solver steps, >= 1."""
        ...

    def sigma_range(self, denoiser: Denoiser) -> tuple[float, float]:
        """(sigma_min, sigma_max) of the run: the schedule's, clipped to what the model knows."""
        ...

    def __call__(self, denoiser: Denoiser) -> Float64[Tensor, " levels"]:
        """``num_steps`` decreasing noise levels and a final 0, on the CPU, not yet rounded."""
        ...


@runtime_checkable
class Solver(Protocol):
    """Integrates from the first noise level to 0: a frozen dataclass whose instance is called.

    Attributes:
        order: order of convergence in the step size, which the tests measure.
    """

    order: ClassVar[int]

    def __call__(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B C H W"],
        sigmas: Float64[Tensor, " levels"],
        condition: Condition,
        noise: Noise,
    ) -> Iterator[SolverStep]:
        """Yield after every step; the last one holds the images.

        Args:
            denoiser: the model, guided or not.
            x: the start, noise of standard deviation ``sigmas[0]``, in the dtype that the state is
                kept in.
            sigmas: decreasing noise levels and a final 0, already rounded to what the model knows.
            condition: of the whole batch.
            noise: the samples' own streams; a deterministic setting draws nothing.
        """
        ...


@runtime_checkable
class RangeAware(Protocol):
    """A solver that also depends on the range of noise levels that the schedule was made for."""

    def with_range(self, sigma_min: float, sigma_max: float) -> Solver:
        """The solver for a schedule over this range, see `Schedule.sigma_range`."""
        ...


@runtime_checkable
class StartAware(Protocol):
    """A solver that starts from noise of another size than the first noise level."""

    def start_std(self, sigma: float) -> float:
        """Standard deviation of the start in the unscaled frame, for a first level ``sigma``."""
        ...


class Guidance(Denoiser):
    """A denoiser around a denoiser: implements ``__call__``, may override `begin_step`.

    It overrides `predict` as well where it is to be used with models that predict a variance.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.sigma_min = inner.sigma_min
        self.sigma_max = inner.sigma_max
        self.num_classes = inner.num_classes
        self.has_null_class = inner.has_null_class
        self.levels = inner.levels
        self.variance = inner.variance
        self.exact = inner.exact

    @property
    def evaluations(self) -> int:  # type: ignore[override]  # counted where the network is
        """Network evaluations so far, in rows."""
        return self.inner.evaluations

    def round_sigma(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """As the model underneath."""
        return self.inner.round_sigma(sigma)

    def time(self, sigma: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """As the model underneath."""
        return self.inner.time(sigma)

    def begin_step(self, step: StepInfo) -> None:
        """Pass the word on."""
        self.inner.begin_step(step)


GuidanceBuilder = Callable[..., Callable[[Denoiser], Guidance]]

SOLVERS: Registry[type[Solver]] = Registry(
    "genlab.solvers",
    {
        "euler": "genlab.samplers.solvers.euler:Euler",
        "heun": "genlab.samplers.solvers.heun:Heun",
        "two-stage": "genlab.samplers.solvers.two_stage:TwoStage",
        "general": "genlab.samplers.solvers.general:General",
        "ddpm": "genlab.samplers.solvers.ddpm:DDPM",
        "ddim": "genlab.samplers.solvers.ddim:DDIM",
        "dpmpp-2m": "genlab.samplers.solvers.multistep:DPMSolverPP2M",
        "unipc": "genlab.samplers.solvers.multistep:UniPC",
        "euler-ancestral": "genlab.samplers.solvers.euler_ancestral:EulerAncestral",
        "flow": "genlab.samplers.solvers.flow:FlowODE",
        "flow-sde": "genlab.samplers.solvers.flow_sde:FlowSDE",
    },
)
SCHEDULES: Registry[type[Schedule]] = Registry(
    "genlab.schedules",
    {
        "karras": "genlab.samplers.schedules:Karras",
        "vp": "genlab.samplers.schedules:VP",
        "ve": "genlab.samplers.schedules:VE",
        "iddpm": "genlab.samplers.schedules:IDDPM",
        "cosine": "genlab.samplers.schedules:Cosine",
        "linear": "genlab.samplers.schedules:Linear",
        "respaced": "genlab.samplers.respaced:Respaced",
        "timesteps": "genlab.samplers.timesteps:Timesteps",
        "flow": "genlab.samplers.flow_times:FlowTimes",
    },
)
GUIDANCE: Registry[Any] = Registry(
    "genlab.guidance",
    {
        "cfg": "genlab.samplers.guidance.classifier_free:ClassifierFree",
        "classifier": "genlab.samplers.guidance.classifier:ClassifierGuidance",
    },
)


@dataclass(frozen=True, kw_only=True)
class SamplerStack:
    """A solver, a schedule and the guidance around the denoiser, innermost first, ready to run."""

    solver: Solver
    schedule: Schedule
    guidance: Sequence[Callable[[Denoiser], Guidance]] = ()
