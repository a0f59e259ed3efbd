"""diffusers' own schedulers as solvers: their ``step`` under our loop."""

import inspect
import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from genlab.diffusion.denoiser import ConditionedDenoiser, State, StepInfo
from genlab.diffusion.noise import Noise
from genlab.diffusion.spaces import space_of
from genlab.errors import ConfigError
from genlab.samplers.base import Grid, Solver, StepResult
from genlab.samplers.diffusers_schedulers import (
    KINDS,
    Run,
    check_settings,
    defaults_of,
    quiet,
    refusal,
    step_options_of,
)


@dataclass
class _Memory:
    """The memory of a run; the scheduler itself changes with each call.

    Attributes:
        run: the scheduler.
        draws: whether it draws noise.
        generators: one for each sample; None until one is needed.
        x: the state that the last step returned; another one means that a hook has replaced it.
    """

    run: Run
    draws: bool
    generators: list[torch.Generator] | None = None
    x: State | None = None


@dataclass(frozen=True, kw_only=True)
class DiffusersScheduler(Solver):
    """A scheduler of diffusers, run as it is: PNDM, SA-Solver, single-step DPM-Solver and others.

    Choose it to repeat what a pipeline of diffusers draws, or for a solver that is not among ours;
    ours are in float64 and tell their order. It needs the schedule ``diffusers`` of the same
    scheduler and settings.

    Order 1 at least: that of the scheduler. Costs as many network evaluations as the scheduler has
    timesteps: one a step for most, 2 N - 1 for those of second order, N + 9 for PNDM and N + 1 for
    its ``skip_prk_steps``.

    Attributes:
        scheduler: the name of its class, ``PNDMScheduler`` for instance.
        config: its settings; what is left out takes diffusers' defaults. The betas and the kind of
            prediction are the model's.
        step_options: what its ``step`` takes beside the state, for instance ``eta`` of DDIM or
            ``order`` of LMS.

    It computes in float32, as there. A scheduler that draws is given one generator for each sample,
    seeded from a fork of the sample's stream.

    Source: the schedulers of diffusers.
    """

    order: ClassVar[int] = 1

    scheduler: str = "DPMSolverMultistepScheduler"
    config: dict[str, Any] = field(default_factory=dict)
    step_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self.scheduler, self.config, self.step_options)

    @property
    def on_grid(self) -> bool:  # type: ignore[override]  # here it depends on the scheduler
        """Whether it asks at whole timesteps alone, which every discrete model knows."""
        return KINDS[self.scheduler].frame == "chain"

    @override
    def draws(self) -> int:
        settings = {
            **defaults_of(self.scheduler),
            **self.config,
            **step_options_of(self.scheduler),
            **self.step_options,
        }
        return int(KINDS[self.scheduler].draws(settings))

    @override
    def nfe(self, num_steps: int) -> int:
        return len(Run(self.scheduler, self.config, num_steps, None).timesteps)

    def start_std(self, sigma: float) -> float:
        """That of unit noise in the scheduler's frame, or of what it starts from there."""
        settings = {**defaults_of(self.scheduler), **self.config}
        frame = KINDS[self.scheduler].frame
        if frame == "flow" or settings.get("use_flow_sigmas"):
            return 1 + sigma
        if frame == "unscaled" and settings["timestep_spacing"] in ("linspace", "trailing"):
            return sigma
        return math.hypot(1.0, sigma)

    def begin(self, grid: Grid) -> _Memory:
        """A scheduler of its own for each run.

        Raises:
            ConfigError: the levels are not those of the scheduler, or its noise cannot be given.
        """
        levels = grid.sigmas[:-1]
        run = Run(self.scheduler, self.config, len(levels), grid.noise_levels)
        own = grid.noise_levels.round_sigma(torch.tensor(run.levels, dtype=torch.float64))
        if not torch.equal(own, levels):
            raise ConfigError(
                "the diffusers solver needs the noise levels of its own scheduler: give it the "
                f"schedule diffusers with scheduler: {self.scheduler} and the same config; edits "
                "need another solver"
            )
        draws = self.draws() > 0
        if draws and "randn_like" in inspect.getsource(type(run.scheduler).step):
            raise ConfigError(
                f"{self.scheduler} of diffusers {diffusers.__version__} draws noise that no seed "
                "of a sample decides; update diffusers"
            )
        return _Memory(run, draws)

    @override
    def step(
        self, denoiser: ConditionedDenoiser, x: State, step: StepInfo, memory: _Memory
    ) -> StepResult:
        run, options = memory.run, dict(self.step_options)
        if memory.x is not None and memory.x is not x:
            run.start_anew(step.index)
        if memory.draws:
            options["generator"] = memory.generators = memory.generators or generators_for(
                step.noise
            )
        state = (x * run.scale(step.level)).to(torch.float32)
        x0 = x
        for call in run.calls[step.index]:
            output, x0 = self._ask(denoiser, run, call, state, x.dtype)
            try:
                with quiet():
                    state = run.scheduler.step(
                        output, run.timesteps[call], state, **options, return_dict=False
                    )[0]
            except (NotImplementedError, ValueError) as error:
                raise refusal(self.scheduler, error) from error
        x_next = state.to(x.dtype) / run.scale(step.sigma_next)
        return StepResult(x=x_next, x0=x0, memory=replace(memory, x=x_next))

    def _ask(
        self,
        denoiser: ConditionedDenoiser,
        run: Run,
        call: int,
        state: State,
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "B _ H W"], State]:
        """(what the scheduler takes for its network's output, the denoised estimate)."""
        # The network gets the scheduler's timestep, which need not be that of the state.
        sigma = run.model_sigmas[call]
        x = run.network_input(state, call).to(dtype) / run.network_scale(sigma)
        level = torch.tensor(sigma, dtype=torch.float64)
        if not run.variance:
            x0 = denoiser(x, sigma)
            return space_of(run.space).express(x0, x, level).to(torch.float32), x0
        prediction = denoiser.predict(x, sigma)
        x0 = prediction.estimate(level)
        if prediction.variance is None:
            raise ConfigError(
                f"{self.scheduler} with variance_type {run.scheduler.variance_type} needs a model "
                "that predicts a variance; leave variance_type out"
            )
        output = space_of(run.space).express(x0, x, level)
        return torch.cat([output, prediction.variance.to(dtype)], 1).to(torch.float32), x0


def generators_for(noise: Noise) -> list[torch.Generator]:
    """A generator for each sample, from a fork of its stream."""
    seeds = (noise.fork("diffusers").rand((), torch.float64).cpu() * 2**52).long().tolist()
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
