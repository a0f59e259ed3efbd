"""Inversion: from images back to the noise that a deterministic solver would draw them from."""

import math
from collections.abc import Iterator

from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import ConditionedDenoiser, Denoiser, State
from genlab.diffusion.noise import NoiseStream
from genlab.samplers.base import Grid, Solver, SolverStep
from genlab.samplers.loop import solve
from genlab.samplers.solvers.ddim import DDIM


def invert(
    solver: Solver,
    denoiser: Denoiser,
    x: State,
    sigmas: Float64[Tensor, " levels"],
    condition: Condition,
) -> Iterator[SolverStep]:
    """Follow a deterministic solver from little noise to much.

    Args:
        solver: one that draws no noise and starts from what it is given.
        denoiser: the model, guided or not.
        x: the state at the first level, (B, C, H, W), in the dtype that it is kept in.
        sigmas: increasing noise levels, on the CPU.
        condition: of the whole batch.

    Returns:
        A step to each level but the first.
    """
    ends = float(sigmas[0]), float(sigmas[-1])
    grid = Grid(sigmas=sigmas, sigma_range=ends, noise_levels=denoiser.noise_levels)
    silent = NoiseStream([])
    return solve(solver, denoiser, x, grid, condition=condition, noise=silent, restarts=False)


def ddim_latents(
    denoiser: Denoiser,
    images: Float[Tensor, "B C H W"],
    sigmas: Float64[Tensor, " levels"],
    condition: Condition,
    *,
    clip: bool = False,
) -> Float[Tensor, "B C H W"]:
    """Find the latents from which deterministic `DDIM` comes back to given images, nearly.

    Args:
        denoiser: the model, guided or not.
        images: in [-1, 1], (B, C, H, W), in the dtype that the state is kept in.
        sigmas: the noise levels of sampling: decreasing, with a final 0.
        condition: of the whole batch.
        clip: as the sampler's.

    Returns:
        Standard normal latents for `genlab.samplers.loop.sample_steps`. The error falls with the
        number of levels, since each step takes the slope of where it starts.

    Source: Dhariwal and Nichol (arXiv:2105.05233), Appendix F; as in the official code, the images
    are taken for the scaled ones of the least noise level.
    """
    levels = sigmas[:-1].flip(0)
    start = images * math.hypot(1.0, float(levels[0]))
    *_, last = invert(DDIM(clip=clip), denoiser, start, levels, condition)
    # One more step would lead to pure noise, which is the noise in the state itself.
    largest = float(levels[-1])
    return (last.x - ConditionedDenoiser(denoiser, condition)(last.x, largest, clip=clip)) / largest
