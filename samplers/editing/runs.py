"""Editing runs: they begin with images, and may keep parts of them.

Image-to-image starts from images under the noise of a level, or from what inversion finds, and goes
on from there. Inpainting is RePaint: the known part of the state is the image under fresh noise
after every step, and the run goes back up again and again, so that the two parts grow together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from genlab import compute
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, State
from genlab.diffusion.noise import Noise
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError
from genlab.samplers.base import Grid, Hook, SolverStep
from genlab.samplers.editing.inversion import check_invertible, invert_images
from genlab.samplers.editing.options import Edit
from genlab.samplers.loop import solve
from genlab.samplers.sampler import Sampler


def edited_grid(edit: Edit, grid: Grid, *, inpaints: bool = False) -> Grid:
    """The levels of an edit's run, of those that the sampler would go through.

    Args:
        edit: where the run starts, and how often it goes back.
        grid: of the sampler.
        inpaints: whether the run keeps a part of the images.

    Raises:
        ConfigError: the run cannot go back up among these levels.
    """
    if edit.start_sigma is not None:
        grid = begin_at(grid, edit.start_sigma)
    elif edit.strength is not None:
        grid = begin_at(grid, level_of_time(grid.noise_levels, edit.strength))
    if not inpaints or edit.resample == 1:
        return grid
    return go_back(grid, edit.jump_length, edit.resample)


def level_of_time(noise_levels: NoiseLevels, time: float) -> float:
    """The smallest noise level at which the model's own time is ``time`` or more.

    Args:
        noise_levels: of the model.
        time: in [0, 1], 1 is noise.
    """

    def reaches(log_sigma: float) -> bool:
        # A time that was reached up to rounding is reached.
        return noise_levels.time_of(math.exp(log_sigma)) >= time - 1e-9

    low = math.log(max(noise_levels.sigma_min, 1e-6))
    high = math.log(min(noise_levels.sigma_max, 1e9))
    if reaches(low):
        return math.exp(low)
    for _ in range(60):  # halves of some 35 units, down to the rounding of float64
        middle = 0.5 * (low + high)
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return math.exp(high)


def begin_at(grid: Grid, sigma: float) -> Grid:
    """The run from a noise level on: that level, and all of the grid's that lie below it.

    Levels that rise again (restarts) stay where they are not above the start.

    Args:
        grid: of the whole run.
        sigma: rounded to what the model knows; at most the largest level of the grid.
    """
    largest = float(grid.sigmas.max())
    start = torch.tensor([min(sigma, largest)], dtype=torch.float64)
    start = grid.noise_levels.round_sigma(start)
    rest = grid.sigmas[grid.sigmas <= float(start) * (1 + 1e-6)]
    if float(rest[0]) >= float(start) * (1 - 1e-6):
        rest = rest[1:]  # the start itself, up to rounding
    low, high = grid.sigma_range
    return replace(
        grid, sigmas=torch.cat([start, rest]), sigma_range=(low, max(low, min(high, float(start))))
    )


def go_back(grid: Grid, jump_length: int | None, resample: int) -> Grid:
    """A run that goes back up after every ``jump_length`` levels, and again.

    Args:
        grid: of a run that only falls.
        jump_length: how many levels up at a time; None is a 25th of them, at least 1.
        resample: how often each stretch is gone through, >= 1.

    Raises:
        ConfigError: levels rise already, or there are too few.

    Source: Lugmayr et al. (arXiv:2201.09865), Sec. 4.2: jumps begin at every ``jump_length``-th
    level, counted from the smallest one. A rise is one draw for all its levels, which is the same
    in law.
    """
    rising = grid.sigmas[:-1].flip(0)
    count = len(rising)
    if grid.restarts:
        raise ConfigError(
            "inpainting goes back up by itself, and this run has levels that rise already; take a "
            "schedule and a solver without restarts, or set resample to 1"
        )
    length = max(1, round(count / 25)) if jump_length is None else jump_length
    if length >= count:
        if jump_length is None:
            return grid  # a single level, with nothing above it
        raise ConfigError(
            f"a run of {count} levels cannot go back {length} of them; set jump_length to "
            f"{max(1, count - 1)} at most, or take more steps"
        )
    left = dict.fromkeys(range(0, count - length, length), resample - 1)
    place, visited = count - 1, [count - 1]
    while place > 0 or left.get(place, 0):
        if left.get(place, 0):
            left[place] -= 1
            place += length
        else:
            place -= 1
        visited.append(place)
    levels = rising[torch.tensor(visited)]
    return replace(grid, sigmas=torch.cat([levels, grid.sigmas[-1:]]))


class KeepKnown:
    """A hook that puts the known part of images back after every step, under fresh noise.

    Args:
        images: (B, C, H, W), in the dtype of the state.
        mask: true where pixels are drawn, (B, 1, H, W) or (B, C, H, W).
        noise: of the run; the known part has a fork of it.

    Source: Lugmayr et al. (arXiv:2201.09865), Algorithm 1, lines 4, 5 and 8, with the standard
    deviation of Eq. 8a, by whose square line 5 multiplies.
    """

    def __init__(self, images: State, mask: Bool[Tensor, "B _ H W"], noise: Noise) -> None:
        self._images, self._mask = images, mask
        self._noise = noise.fork("inpaint")

    def __call__(self, step: SolverStep) -> State | None:
        """The state with its known part; a step that only adds noise is left as it is."""
        if step.sigma_next > step.level:
            return None
        original = self._images
        if step.sigma_next > 0:
            fresh = self._noise.randn(original.shape[1:], torch.float64).to(original.dtype)
            original = original + step.sigma_next * fresh
        return torch.where(self._mask, step.x, original)


def edit_steps(
    sampler: Sampler,
    denoiser: Denoiser,
    images: Float[Tensor, "B C H W"],
    edit: Edit,
    *,
    noise: Noise,
    condition: Condition,
    device: torch.device | str,
    mask: Bool[Tensor, "B _ H W"] | None = None,
    source: Condition | None = None,
    latents: Float[Tensor, "B C H W"] | None = None,
    hooks: Sequence[Hook] = (),
) -> Iterator[SolverStep]:
    """Draw images anew, step by step; as `genlab.samplers.loop.sample_steps` otherwise.

    Args:
        sampler: with its parts loaded.
        denoiser: the model, not yet guided.
        images: what is edited, in [-1, 1] (or latents of them).
        edit: how.
        noise: one stream for each image.
        condition: of what is drawn.
        device: see `sample_steps`.
        mask: true where pixels are drawn; None draws all of them.
        source: the condition of the images, for inversion; None is ``condition``.
        latents: standard normal noise, in place of drawing it.
        hooks: see `sample_steps`; they see the known part of an inpainted state, too.

    Raises:
        ConfigError: the model refuses the guidance or the schedule, the solver cannot be inverted,
            or the run cannot go back up.
    """
    guided, grid = check_edit(sampler, denoiser, edit, inpaints=mask is not None)
    state = images.to(device).to(compute.widest(device))
    largest = float(grid.sigmas[0])
    if edit.invert:
        if latents is not None:
            raise ConfigError(
                "inversion finds the noise that a run starts from; leave latents or invert out"
            )
        model = guided if edit.guided else denoiser
        x = _inverted(sampler, model, state, grid, source or condition, edit.ask)
    else:
        if latents is None:
            latents = noise.randn(tuple(images.shape[1:]))
        fresh = latents.to(device).to(state.dtype)
        if edit.starts_between:
            x = state + largest * fresh
        else:
            x = sampler.solver.start_std(largest) * fresh
    if mask is not None:
        hooks = (KeepKnown(state, mask.to(device), noise), *hooks)
    yield from solve(sampler.solver, guided, x, grid, condition=condition, noise=noise, hooks=hooks)


def latents_of(
    sampler: Sampler,
    denoiser: Denoiser,
    images: Float[Tensor, "B C H W"],
    edit: Edit,
    *,
    condition: Condition,
    device: torch.device | str,
) -> Float[Tensor, "B C H W"]:
    """The latents from which a sampler comes back to images, nearly; see `edit_steps`.

    Args:
        sampler: with its parts loaded.
        denoiser: the model, not yet guided.
        images: in [-1, 1] (or latents of them).
        edit: with ``invert``, and from the largest level on.
        condition: of the images.
        device: where to compute.

    Returns:
        Standard normal up to the model's error, in the dtype of the state.

    Raises:
        ConfigError: the solver cannot be inverted, or the edit starts between the levels.
    """
    if edit.starts_between:
        raise ConfigError(
            "latents stand for the whole way to noise; leave strength and start_sigma out, or edit "
            "the images"
        )
    guided, grid = check_edit(sampler, denoiser, edit, inpaints=False)
    state = images.to(device).to(compute.widest(device))
    model = guided if edit.guided else denoiser
    x = _inverted(sampler, model, state, grid, condition, edit.ask)
    return x / sampler.solver.start_std(float(grid.sigmas[0]))


def _inverted(
    sampler: Sampler, model: Denoiser, images: State, grid: Grid, condition: Condition, ask: str
) -> State:
    """The state at the first level of a grid."""
    solver, levels = sampler.solver, grid.sigmas
    *_, last = invert_images(solver, model, images, levels, condition, ask=ask)
    return last.x


def check_edit(
    sampler: Sampler, denoiser: Denoiser, edit: Edit, *, inpaints: bool
) -> tuple[Denoiser, Grid]:
    """The guided model and the levels of a run, where all fits together.

    Raises:
        ConfigError: see `edit_steps`.
    """
    if edit.invert and inpaints:
        raise ConfigError(
            "inpainting draws fresh noise for what is kept, and inversion draws none; leave the "
            "mask or invert out"
        )
    if not (edit.invert or inpaints or edit.starts_between):
        raise ConfigError(
            "how much of the images is to be drawn anew? give a strength (for instance 0.6 of the "
            "way to noise), a mask, or invert"
        )
    guided = sampler.guide(denoiser)
    grid = edited_grid(edit, sampler.route(guided.noise_levels), inpaints=inpaints)
    sampler.check_run(grid)
    sampler.solver.begin(grid)
    if edit.invert:
        check_invertible(sampler.solver, denoiser, grid.sigmas)
    return guided, grid
