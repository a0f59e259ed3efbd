"""GITS: noise levels made for one model, by dynamic programming over a teacher's trajectories.

A teacher follows Euler's method over many levels. Going from level i straight to level j, along the
slope at i, misses where the teacher comes to; with these costs for all pairs, the best choice of so
many levels is a shortest path.

Source: Chen et al. (arXiv:2405.11326); the costs and ``coeff`` as in the authors' code.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab.diffusion.denoiser import State
from genlab.errors import ConfigError, nearest
from genlab.samplers.base import SolverStep

METRICS = ("dev", "l2", "l1")
"""What a straight step is judged by: ``l2`` and ``l1``, the norm of its distance from the teacher's
state; ``dev``, how much further it lies from the line between the teacher's first and last state
than the teacher does."""


def step_costs(
    latents: State, steps: Iterable[SolverStep], metric: str = "dev"
) -> tuple[Float64[Tensor, " N"], Float64[Tensor, "N N"]]:
    """What each straight step between two levels of a teacher costs.

    Args:
        latents: what the teacher begins with, in unit variance, (B, C, H, W).
        steps: of the teacher, a run of `Euler` without churn; the one to noise level 0 is ignored.
        metric: one of `METRICS`.

    Returns:
        The N levels of the teacher, decreasing, repeats left out; and the cost of going from each
        to each later one, 0 elsewhere: the mean over the samples, on the CPU.

    Raises:
        ConfigError: there is no such metric.
    """
    check_metric(metric)
    sigmas: list[float] = []
    states: list[State] = []
    slopes: list[State] = []
    for step in steps:
        if step.sigma_next == step.level:
            continue
        if not states:
            states.append(latents.to(step.x) * step.level)
        sigmas.append(step.level)
        slopes.append((states[-1] - step.x0) / step.level)
        if step.sigma_next == 0:
            break
        states.append(step.x)
    levels = torch.tensor(sigmas, dtype=torch.float64)
    teacher = torch.stack(states)
    costs = teacher.new_zeros(len(sigmas), len(sigmas))
    for i, sigma in enumerate(sigmas[:-1]):
        lengths = (levels[i + 1 :] - sigma).to(teacher).reshape(-1, 1, 1, 1, 1)
        ends = states[i] + lengths * slopes[i]
        costs[i, i + 1 :] = _costs(ends, teacher[i + 1 :], teacher, metric)
    return levels, costs.to("cpu").to(torch.float64)


def check_metric(metric: str) -> None:
    """Refuse an unknown metric.

    Raises:
        ConfigError: names the nearest.
    """
    if metric not in METRICS:
        raise ConfigError(f"there is no metric {metric!r}; {nearest(metric, METRICS)}")


def shortest_path(
    costs: Float64[Tensor, "N N"], num_steps: int, coeff: float = 1.15
) -> tuple[int, ...]:
    """The levels of least cost, the first and the last among them.

    Args:
        costs: of going from each level to each later one.
        num_steps: how many levels, 1 <= num_steps <= N; a single one is the first.
        coeff: what the rest of a path is multiplied by at each step, > 0: above 1 later costs weigh
            more.

    Returns:
        Indices of levels, increasing.

    Raises:
        ConfigError: there are fewer levels, or ``coeff`` is out of range.
    """
    if not 1 <= num_steps <= len(costs):
        raise ConfigError(
            f"{num_steps} noise levels cannot be chosen among {len(costs)}; take at least as many "
            "teacher steps, and fewer steps than a discrete model has timesteps"
        )
    if not coeff > 0:
        raise ConfigError(f"coeff must be > 0 (1 weighs all costs alike), got {coeff}")
    if num_steps == 1:
        return (0,)
    table = costs.masked_fill(~torch.ones_like(costs).triu(1).bool(), torch.inf)
    rest, choices = table[:, -1], []
    for _ in range(num_steps - 2):
        rest, choice = (table + coeff * rest).min(1)
        choices.append(choice.tolist())
    path = [0]
    for choice in reversed(choices):
        path.append(choice[path[-1]])
    return (*path, len(costs) - 1)


def _costs(
    ends: Float[Tensor, "J B C H W"],
    at: Float[Tensor, "J B C H W"],
    teacher: Float[Tensor, "N B C H W"],
    metric: str,
) -> Float[Tensor, " J"]:
    """Of straight steps to ``ends``, where the teacher is ``at``."""
    if metric == "dev":
        return (_deviation(ends, teacher) - _deviation(at, teacher)).mean(1)
    return (ends - at).flatten(2).norm(p=2 if metric == "l2" else 1, dim=2).mean(1)


def _deviation(
    x: Float[Tensor, "J B C H W"], teacher: Float[Tensor, "N B C H W"]
) -> Float[Tensor, "J B"]:
    """Distance from the line through the teacher's first and last state."""
    first, last = teacher[0].flatten(1), teacher[-1].flatten(1)
    along = torch.nn.functional.normalize(first - last, dim=1)
    apart = x.flatten(2) - last
    return (apart - (apart * along).sum(2, keepdim=True) * along).norm(dim=2)
