"""diffusers' inversion and RePaint on a closed-form denoiser."""

import math
from dataclasses import replace
from typing import Any

import torch
from golden_cases import MismatchError, Run
from golden_solvers import mixture
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import ConditionedDenoiser, Denoiser, StepInfo
from genlab.diffusion.discrete import Discrete, betas
from genlab.samplers.base import Grid, Solver, SolverStep, StepResult
from genlab.samplers.editing.inversion import ArrivingDDIM, NoDraws, invert
from genlab.samplers.editing.options import Edit
from genlab.samplers.editing.runs import KeepKnown, edited_grid
from genlab.samplers.loop import solve
from genlab.samplers.schedules.timesteps import Timesteps
from genlab.samplers.solvers.ddim import DDIM
from genlab.samplers.solvers.multistep import DPMSolverPP

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def hf_inverse(run: Run) -> None:
    """From images to noise, or from the noise that another run found back to images."""
    [scheduler] = run.params("scheduler").values()
    CHECKS_OF[scheduler](run, mixture(run), Config(_config(run)))


def _config(run: Run) -> dict[str, Any]:
    """The scheduler's config: the run's own, or that of the run that made its latents."""
    own = run.params("scheduler_config")
    if own:
        return dict(own["scheduler_config"])
    made = run.spec["inputs"]["latents"]
    [maker] = [other for other in run.case.runs() if made in other.spec["outputs"].values()]
    return dict(maker.spec["params"]["scheduler_config"])


class Config:
    """A scheduler's config, of which everything has to be looked at."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        schedule = SCHEDULES[self("beta_schedule", "linear")]
        ends = {} if schedule == "cosine" else {
            "beta_start": self("beta_start", 0.0001), "beta_end": self("beta_end", 0.02)
        }  # fmt: skip
        if schedule == "cosine":
            self("beta_start", None), self("beta_end", None)
        self.T: int = self("num_train_timesteps", 1000)
        self.levels = Discrete(schedule=schedule, T=self.T, **ends).levels
        self.betas = betas(schedule, self.T, *ends.values())
        self("prediction_type", "epsilon")  # the closed-form model answers in any

    def __call__(self, name: str, default: Any) -> Any:
        return self.values.pop(name, default)

    def expect_end(self, run: Run) -> None:
        if self.values:
            raise MismatchError(f"{run.id}: unknown options {', '.join(self.values)}")


def ddim_inverse(run: Run, model: Denoiser, config: Config) -> None:
    count = run.params("num_inference_steps")["num_inference_steps"]
    stride = config.T // count
    if config("timestep_spacing", "leading") == "leading":
        timesteps = stride * torch.arange(count) + config("steps_offset", 0)
    else:
        down = torch.arange(config.T, 0, -config.T / count, dtype=torch.float64)
        timesteps = down.flip(0).round().long() - 1
    first = 0.0 if config("set_alpha_to_one", True) else float(config.levels[0])
    clip = config("clip_sample", True)
    if clip and config("clip_sample_range", 1.0) != 1:
        raise MismatchError(f"{run.id}: ours clips to [-1, 1] only")
    config.expect_end(run)
    ends = config.levels[timesteps].tolist()
    starts = [
        float(config.levels[t - stride]) if t >= stride else first for t in timesteps.tolist()
    ]
    solver, images = ArrivingDDIM(clip=clip), run.input("images").double()
    if starts[1:] == ends[:-1]:
        sigmas = torch.tensor([starts[0], *ends], dtype=torch.float64)
        x = images * math.hypot(1, starts[0])
        states = [_scaled(s) for s in invert(solver, model, x, sigmas, Condition())]
    else:
        states = _one_by_one(solver, model, images, starts, ends)
    run.expect_all({"trajectory": torch.stack(states), "timesteps": timesteps})


def _one_by_one(
    solver: Solver, model: Denoiser, x: Tensor, starts: list[float], ends: list[float]
) -> list[Tensor]:
    """Their states where a step need not begin at the level at which the last one ended."""
    states: list[Tensor] = []
    for start, end in zip(starts, ends, strict=True):
        info = StepInfo(
            index=len(states), num_steps=len(starts), level=start, sigma=start, sigma_next=end,
            noise=NoDraws(),
        )  # fmt: skip
        before = (states[-1] if states else x) * math.hypot(1, start)
        after = solver.step(ConditionedDenoiser(model, Condition()), before, info, None).x
        states.append(after / math.hypot(1, end))
    return states


def dpm_inverse(run: Run, model: Denoiser, config: Config) -> None:
    count, T = run.params("num_inference_steps")["num_inference_steps"], config.T
    spacing = config("timestep_spacing", "linspace")
    if spacing == "linspace":
        timesteps = torch.linspace(0, T - 1, count + 1, dtype=torch.float64).round()[:-1].long()
    elif spacing == "leading":
        timesteps = T // (count + 1) * torch.arange(count) + config("steps_offset", 0)
    else:
        down = torch.arange(T, 0, -T / count, dtype=torch.float64)
        timesteps = down.round().flip(0).long() - 1
    kind = config("algorithm_type", "dpmsolver++")
    few = len(timesteps) < 15
    lower = config("lower_order_final", True) and few
    if config("euler_at_final", False) and not few:
        raise MismatchError(f"{run.id}: euler_at_final is not reproduced with many steps")
    solver = DPMSolverPP(
        max_order=config("solver_order", 2),
        correction=config("solver_type", "midpoint"),
        prediction={"dpmsolver++": "x0", "dpmsolver": "eps"}[kind],
        lower_order_final=lower,
    )
    config.expect_end(run)
    sigmas = torch.cat([config.levels[timesteps], config.levels[-1:]])
    x = run.input("images").double() * math.hypot(1, float(sigmas[0]))
    stays = bool(sigmas[-1] == sigmas[-2])  # the last timestep is already that of most noise
    moving = sigmas[: len(sigmas) - stays]
    steps = list(invert(BeforeTheEnd(solver, 1 + stays), model, x, moving, Condition()))
    states = [_scaled(step) for step in steps]
    ours, theirs = torch.stack(states + states[-1:] * stays), run.reference("trajectory")
    # Upwards each step subtracts terms that are larger than the state, by the ratio of its noise
    # levels, with weights that theirs rounds to float32.
    bound = 10 * 2.0**-23 * float((sigmas[1:] / sigmas[:-1]).max())
    error = float((ours - theirs).norm() / theirs.norm())
    if not error <= bound:
        raise MismatchError(f"{run.id}: trajectory is off by {error:.3g}, allowed are {bound:.3g}")
    run.expect_all({"trajectory": theirs, "timesteps": timesteps})


class BeforeTheEnd(Solver):
    """A solver that is told of steps that do not come: ours counts one to 0, theirs has none."""

    order = 0

    def __init__(self, inner: Solver, more: int) -> None:
        self.inner, self.more = inner, more

    def begin(self, grid: Grid) -> Any:
        return self.inner.begin(grid)

    def step(
        self, denoiser: ConditionedDenoiser, x: Tensor, step: StepInfo, memory: Any
    ) -> StepResult:
        step = replace(step, num_steps=step.num_steps + self.more)
        return self.inner.step(denoiser, x, step, memory)


def ddim_back(run: Run, model: Denoiser, config: Config) -> None:
    start = run.params("start")["start"]
    if start != "the last row of latents":
        raise MismatchError(f"{run.id}: unknown start {start!r}")
    count = run.params("num_inference_steps")["num_inference_steps"]
    schedule = Timesteps(
        num_steps=count,
        spacing=config("timestep_spacing", "leading"),
        offset=config("steps_offset", 0),
    )
    clip = config("clip_sample", True)
    last = 0.0 if config("set_alpha_to_one", True) else float(config.levels[0])
    config.expect_end(run)
    timesteps, stride = schedule.timesteps(config.T).long(), config.T // count
    starts = config.levels[timesteps].tolist()
    ends = [float(config.levels[t - stride]) if t >= stride else last for t in timesteps.tolist()]
    solver, latents = DDIM(clip=clip, keep_noise=clip), run.input("latents")[-1].double()
    if starts[1:] == ends[:-1]:
        sigmas = torch.tensor([*starts, ends[-1]], dtype=torch.float64)
        steps = _run(solver, model, latents * math.hypot(1, starts[0]), sigmas, NoDraws())
        images = _scaled(steps[-1])
    else:
        images = _one_by_one(solver, model, latents, starts, ends)[-1]
    run.expect_all({"images": images})


CHECKS_OF = {
    "DDIMInverseScheduler": ddim_inverse,
    "DPMSolverMultistepInverseScheduler": dpm_inverse,
    "DDIMScheduler": ddim_back,
}


def hf_repaint(run: Run) -> None:
    """Their steps by ours: one draw serves twice, and rises are theirs.

    They go back up from the state after the step, one step lower than the paper's code does, and by
    the betas of the timesteps above; where the paper's levels repeat, theirs only nearly do. So
    rises are done here, by their formula; steps, known part and the order of levels are ours.
    """
    config = Config(run.params("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"))
    options = run.params("num_inference_steps", "eta", "clip_sample")
    stride = config.T // options["num_inference_steps"]
    places = _places(run, options["num_inference_steps"])
    timesteps = [stride * place for place in places]
    below = [float(config.levels[t - stride]) if t else 0.0 for t in timesteps]
    levels, rises, last = [float(config.levels[timesteps[0]])], [], timesteps[0] + 1
    for t, after_step in zip(timesteps, below, strict=True):
        rises.append(t > last)
        levels.append(float(config.levels[last]) if t > last else after_step)
        last = t
    images, noise = run.input("images").double(), Shared(run, rises, stride)
    undo = Undo(noise, [config.betas[t : t + stride].tolist() for t in [0, *timesteps]])
    clip = options["clip_sample"]
    solver = DDIM(eta=options["eta"], clip=clip, keep_noise=clip)
    x = run.input("x_T").double() * math.hypot(1, levels[0])
    drawn = run.input("mask") == 0
    hooks = [KeepKnown(images, drawn, noise), undo]
    steps = _run(solver, mixture(run), x, torch.tensor(levels).double(), noise, hooks)
    run.expect_all(
        {
            "trajectory": torch.stack([_scaled(step) for step in steps]),
            "timesteps": torch.tensor(timesteps),
        }
    )


class Undo:
    """A hook that replaces our rises by theirs.

    Args:
        noise: the official draws; it is told of each step that ends.
        betas: for each step, those that its rise would multiply by.
    """

    def __init__(self, noise: "Shared", betas: list[list[float]]) -> None:
        self.noise, self.betas = noise, betas
        self.x = torch.empty(0)  # the state before the step

    def __call__(self, step: SolverStep) -> Tensor:
        rises = step.sigma_next > step.level
        self.x = self._raised(step) if rises else step.x
        self.noise.index = step.index + 1
        return self.x

    def _raised(self, step: SolverStep) -> Tensor:
        x = self.x / math.hypot(1, step.level)
        draws = self.noise.rows[step.index]
        for beta, fresh in zip(self.betas[step.index], draws, strict=True):
            x = math.sqrt(1 - beta) * x + math.sqrt(beta) * fresh.double()
        return x * math.hypot(1, step.sigma_next)


def _places(run: Run, count: int) -> list[int]:
    """The places that our own jumps visit, those inside a rise included."""
    jumps = run.params("jump_length", "jump_n_sample")
    rising = torch.arange(1, count + 1, dtype=torch.float64)
    sigmas = torch.cat([rising.flip(0), torch.zeros(1, dtype=torch.float64)])
    grid = Grid(
        sigmas=sigmas, sigma_range=(1.0, float(count)), noise_levels=mixture(run).noise_levels
    )
    times = jumps["jump_n_sample"] if jumps["jump_length"] < count else 1
    edit = Edit(resample=times, jump_length=jumps["jump_length"])
    grid = edited_grid(edit, grid, inpaints=True)
    visited = [int(level) - 1 for level in grid.sigmas[:-1].tolist()]
    places = visited[:1]
    for place in visited[1:]:
        places += range(places[-1] + 1, place + 1) if place > places[-1] else [place]
    return places


class Shared:
    """Their draws: one a step, for the variance and for the known part; ``stride`` a rise."""

    def __init__(self, run: Run, rises: list[bool], stride: int) -> None:
        draws = run.draws()
        self.rows = [[draws.pop(0) for _ in range(stride if rise else 1)] for rise in rises]
        self.index = 0
        if draws:
            raise MismatchError(f"{run.id}: {len(draws)} official draws are left over")

    def randn(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.rows[self.index][0].to(dtype)

    def rand(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        raise AssertionError("uniform numbers are drawn, officially they are not")

    def fork(self, key: str) -> "Shared":
        return self


def _run(
    solver: Solver, model: Denoiser, x: Tensor, sigmas: Tensor, noise: Any, hooks: Any = ()
) -> list[SolverStep]:
    ends = float(sigmas[sigmas > 0].min()), float(sigmas.max())
    grid = Grid(sigmas=sigmas, sigma_range=ends, noise_levels=model.noise_levels)
    return list(solve(solver, model, x, grid, condition=Condition(), noise=noise, hooks=hooks))


def _scaled(step: SolverStep) -> Tensor:
    return step.x / math.hypot(1, step.sigma_next)


CHECKS = {"hf_inverse": hf_inverse, "hf_repaint": hf_repaint}
