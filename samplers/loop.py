"""The run: the one loop in which diffusion models are sampled, whatever the solver."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from genlab import compute
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import ConditionedDenoiser, Denoiser, State, StepInfo
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError, SamplingError
from genlab.registry import class_path
from genlab.samplers.base import Grid, Hook, Solver, SolverStep, StepResult, call_hooks
from genlab.samplers.sampler import Sampler


def sample_steps(
    sampler: Sampler,
    denoiser: Denoiser,
    *,
    noise: Noise,
    condition: Condition,
    image_shape: Sequence[int],
    device: torch.device | str,
    latents: Float[Tensor, "B C H W"] | None = None,
    hooks: Sequence[Hook] = (),
) -> Iterator[SolverStep]:
    """Sample one batch, step by step; the last step holds the images.

    Switching gradients off is the caller's business.

    Args:
        sampler: with its parts loaded.
        denoiser: the model, not yet guided.
        noise: one stream for each image; the latents are its first draw, in float32.
        condition: of the whole batch.
        image_shape: (C, H, W).
        device: where to compute. The state is float64 there, float32 on a device that lacks it.
        latents: standard normal start, in place of drawing it.
        hooks: look at each step before it is yielded, or replace its state.

    Raises:
        ConfigError: the model refuses the guidance or the schedule, a guidance the run, or
            ``latents`` has another shape.
        SamplingError: a schedule, guidance or solver breaks its contract; names it.
    """
    guided = sampler.guide(denoiser)
    grid = sampler.grid(guided.noise_levels)
    if latents is None:
        latents = noise.randn(tuple(image_shape))
    elif tuple(latents.shape[1:]) != tuple(image_shape):
        raise ConfigError(
            f"latents must be images of shape {tuple(image_shape)}, got {tuple(latents.shape[1:])}"
        )
    # Cast before the move would not do: Metal has no float64 at all, others multiply in it.
    start = sampler.solver.start_std(float(grid.sigmas[0]))
    x = latents.to(device).to(compute.widest(device)) * start
    return solve(sampler.solver, guided, x, grid, condition=condition, noise=noise, hooks=hooks)


def solve(
    solver: Solver,
    denoiser: Denoiser,
    x: State,
    grid: Grid,
    *,
    condition: Condition,
    noise: Noise,
    hooks: Sequence[Hook] = (),
    restarts: bool = True,
) -> Iterator[SolverStep]:
    """Go through the levels of a run.

    Args:
        solver: takes the steps.
        denoiser: the model, guided or not.
        x: the state at the first level, in the dtype that it is kept in.
        grid: the levels.
        condition: of the whole batch.
        noise: one stream for each image.
        hooks: see `sample_steps`.
        restarts: whether a level above the one before it is reached by adding noise. Otherwise the
            solver steps there, too (inversion).
    """
    conditioned = ConditionedDenoiser(denoiser, condition)
    result = StepResult(x=x, x0=x, memory=solver.begin(grid))
    for info in _plan(solver, grid, noise, restarts and grid.restarts):
        denoiser.begin_step(info)
        if info.restarts and info.sigma_next > info.level:
            result = replace(result, x=solver.renoise(x, info), memory=solver.begin(grid))
        else:
            result = _checked(solver, solver.step(conditioned, x, info, result.memory), x)
        step = call_hooks(SolverStep(**vars(info), x=result.x, x0=result.x0), hooks)
        x = step.x
        yield step


def _checked(solver: Solver, result: StepResult, x: State) -> StepResult:
    """What a solver returned, where it is what the next step and the images can be made of.

    Raises:
        SamplingError: names the solver.
    """
    name = class_path(type(solver))
    if not isinstance(result, StepResult):
        raise SamplingError(
            f"the solver {name} returns a {class_path(type(result))} from step, not a StepResult"
        )
    for field in ("x", "x0"):
        value: Any = getattr(result, field)
        if not isinstance(value, Tensor) or value.shape != x.shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else class_path(type(value))
            raise SamplingError(
                f"the solver {name} returns {field} of shape {shape} from step for a state of shape"
                f" {tuple(x.shape)}; it must keep the shape"
            )
    return result


def _plan(solver: Solver, grid: Grid, noise: Noise, restarts: bool) -> Iterator[StepInfo]:
    """The steps of a run, in Python numbers: the loop never waits for a device."""
    levels, starts = grid.sigmas.tolist(), solver.starts(grid)
    for index, sigma in enumerate(starts):
        yield StepInfo(
            index=index,
            num_steps=len(starts),
            level=levels[index],
            sigma=sigma,
            sigma_next=levels[index + 1],
            noise=noise,
            restarts=restarts,
        )
