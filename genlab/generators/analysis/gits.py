"""Noise levels made for one model (GITS): what ``genlab schedule`` does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.noise import NoiseStream
from genlab.errors import ConfigError
from genlab.generators.base import Generator
from genlab.generators.diffusion import DiffusionGenerator
from genlab.samplers.base import SamplerLike
from genlab.samplers.gits import check_metric, shortest_path, step_costs
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.listed import Levels
from genlab.samplers.solvers.euler import Euler


@dataclass(frozen=True, kw_only=True, eq=False)
class MadeLevels:
    """Noise levels with what they were chosen by.

    Attributes:
        schedule: the levels, ready to sample with.
        teacher: the levels that they were chosen among, decreasing, (N,).
        chosen: their indices there.
        costs: of going from each level to each later one, (N, N).
        nfe: network evaluations for each of the teacher's images.
    """

    schedule: Levels
    teacher: Float64[Tensor, " N"]
    chosen: tuple[int, ...]
    costs: Float64[Tensor, "N N"]
    nfe: int


@torch.no_grad()
def make_levels(
    generator: Generator,
    num_steps: int,
    *,
    seeds: Sequence[int] = range(64),
    labels: Sequence[int] | None = None,
    sampler: SamplerLike = None,
    guidance_scale: float | None = None,
    teacher_steps: int = 61,
    metric: str = "dev",
    coeff: float = 1.15,
    batch_size: int = 16,
) -> MadeLevels:
    """Choose the noise levels with which few steps follow a model's trajectories best.

    Args:
        generator: a diffusion model.
        num_steps: how many levels, >= 1: as many solver steps.
        seeds: of the teacher's images.
        labels: one class for each; None draws them from the seeds.
        sampler: its schedule says among which levels is chosen, its guidance guides the teacher;
            None is the model's own. Its solver is not used.
        guidance_scale: see `Generator.build_sampler`.
        teacher_steps: levels to choose among; a discrete model may have fewer.
        metric: see `genlab.samplers.gits.METRICS`.
        coeff: see `genlab.samplers.gits.shortest_path`.
        batch_size: images at a time, whose whole trajectories are held in memory.

    Raises:
        ConfigError: a setting is wrong or does not fit the model, or it is no diffusion model.
    """
    if not isinstance(generator, DiffusionGenerator):
        raise ConfigError(
            f"noise levels are made for diffusion models; this generator is a {generator.kind}"
        )
    check_metric(metric)
    if not seeds or batch_size < 1:
        raise ConfigError("making noise levels needs at least one seed and batch_size >= 1")
    whole: Sampler = generator.build_sampler(
        sampler, num_steps=teacher_steps, guidance_scale=guidance_scale
    )
    euler = replace(whole, solver=Euler(), text=None)
    classes = generator.choose_labels(seeds, labels, generator.sampled_classes(euler))
    before, total = generator.evaluations, None
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        noise = NoiseStream(seeds[part], generator.device)
        latents = noise.randn(generator.state_shape)
        steps = generator.steps(
            noise, None if classes is None else classes[part], euler, latents=latents
        )
        levels, costs = step_costs(latents, steps, metric)
        total = len(latents) * costs + (0 if total is None else total)
    assert total is not None
    mean = total / len(seeds)
    chosen = shortest_path(mean, num_steps, coeff)
    return MadeLevels(
        schedule=Levels(sigmas=levels[list(chosen)].tolist(), num_steps=len(chosen)),
        teacher=levels,
        chosen=chosen,
        costs=mean,
        nfe=(generator.evaluations - before) // len(seeds),
    )
