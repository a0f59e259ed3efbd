"""diffusers' schedulers as the samplers that a folder is read with, on a DiT and on a flow."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from golden_cases import Run, compare
from golden_diffusers import ModelRecorder, convert, our_labels
from golden_noise import RecordedNoise
from golden_solvers import Noting, Recorded, mixture
from golden_told import shared
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import NoiseStream
from genlab.diffusion.preconditioned import PreconditionedDenoiser
from genlab.diffusion.preconditioning import Coefficients, Preconditioning
from genlab.samplers.base import Grid, Solver, SolverStep
from genlab.samplers.diffusers_schedulers import KINDS
from genlab.samplers.diffusers_schedulers import Run as SchedulerRun
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler
from genlab.samplers.schedules.diffusers_scheduler import diffusers_sampler
from genlab.samplers.solvers.diffusers_scheduler import DiffusersScheduler
from genlab.samplers.solvers.single_step import DPMSolverPPSDE


class Draws(RecordedNoise):
    """The official draws; of an adapter's fork only seeds are made, whose draws are replaced."""

    def fork(self, key: str) -> Any:
        if key == "diffusers":
            return NoiseStream(range(len(self.rows[0])))
        return super().fork(key)


@contextmanager
def watched(scheduler: str, noise: Draws) -> Iterator[list[Tensor]]:
    """What a scheduler of diffusers returns from each step, drawing the official noise."""
    cls = getattr(diffusers, scheduler)
    original, states = cls.step, []

    @functools.wraps(original)
    def step(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        states.append(result[0])
        return result

    def given(shape: Any, **options: Any) -> Tensor:
        return noise.randn(shape[1:], options["dtype"])

    module = sys.modules[cls.__module__]
    draws = (
        patch.object(module, "randn_tensor", given)
        if hasattr(module, "randn_tensor")
        else patch.object(cls, "step", original)
    )
    with draws, patch.object(cls, "step", step):
        yield states


def hf_scheduler(run: Run) -> None:
    """A folder with a scheduler's config, sampled as it is read."""
    params = run.params("scheduler", "scheduler_config", "num_inference_steps", "split")
    step_options = run.params("step_kwargs").get("step_kwargs") or {}
    labels = run.input("class_labels")
    config = {
        "_class_name": params["scheduler"],
        **params["scheduler_config"],
        "num_steps": params["num_inference_steps"],
    }
    if KINDS.get(params["scheduler"]) == KINDS["IPNDMScheduler"]:
        generator = convert(run.case, (("beta_schedule", "linear"),))
        model: Denoiser = PreconditionedDenoiser(
            generator.network, Angle(), num_classes=generator.num_classes, has_null_class=True
        )
        own: Any = diffusers_sampler(params["scheduler"], num_steps=config["num_steps"])
        run.params("scheduler_config")
    else:
        generator = convert(run.case, tuple((k, _hashable(v)) for k, v in config.items()))
        model, own = generator.denoiser, generator.sampler.config
    own = with_step_options(own, params["scheduler"], step_options)
    recorder = ModelRecorder(model, generator)
    condition = Condition(labels=our_labels(labels, generator.num_classes))
    results = _sample(run, Sampler.from_config(own), recorder, condition, params["scheduler"])
    recorder.notes.remove()
    told = torch.cat([shared(call.told) for call in recorder.calls])
    run.expect_all(results(recorder.states, recorder.sigmas) | {"timesteps": _as(run, told)})


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as(run: Run, told: Tensor) -> Tensor:
    return told.to(run.reference("timesteps").dtype)


def with_step_options(own: Any, scheduler: str, options: dict[str, Any]) -> Any:
    """The sampler with options of the step, under our solver's names."""
    if not options:
        return own
    names = {**STEP_OPTIONS, **({"s_noise": "s_noise"} if scheduler not in KINDS else {})}
    ours = {names.get(name, ""): value for name, value in options.items()}
    if own["solver"]["name"] != "diffusers" and "" not in ours:
        return {**own, "solver": {**own["solver"], **ours}}
    schedule = own["schedule"]
    config = schedule.get("config", {})
    return diffusers_sampler(scheduler, config, num_steps=schedule["num_steps"], step=options)


STEP_OPTIONS = {"eta": "eta", "order": "max_order"}
"""Theirs -> ours. Churn is another: theirs tells the network the level before it."""


def _sample(
    run: Run, sampler: Sampler, model: Denoiser, condition: Condition, scheduler: str
) -> Callable[[list[Tensor], list[float]], dict[str, Tensor]]:
    """Run a sampler on the recorded start and noise; what is compared, given the model's calls."""
    latents = run.input("noise_init" if run.has("noise_init") else "latents")
    noise = Draws(run)
    solver = sampler.solver
    adapted = isinstance(solver, DiffusersScheduler)
    path = patch("genlab.samplers.solvers.draws.BrownianPath", Recorded)
    steps: list[SolverStep] = []
    states: list[Tensor] = []
    with path, torch.no_grad():
        options: Any = {"noise": noise, "condition": condition, "latents": latents}
        options |= {"image_shape": latents.shape[1:], "device": "cpu"}
        if adapted:
            with watched(scheduler, noise) as states:
                steps += sample_steps(sampler, model, **options)
        else:
            steps += sample_steps(sampler, model, **options)
    _expect_all_drawn(noise, latents, multiplied_by_0=not adapted)
    grid = Grid.of(sampler.schedule, model.noise_levels)
    start = solver.start_std(float(grid.sigmas[0]))

    def results(inputs: list[Tensor], asked: list[float]) -> dict[str, Tensor]:
        last = steps[-1].x
        if isinstance(solver, DiffusersScheduler):
            theirs = SchedulerRun(scheduler, solver.config, len(steps), model.noise_levels)
            visited = getattr(theirs.scheduler, "sigmas", torch.zeros(0))
            return {
                "trajectory": torch.stack([*states[:-1], last.to(states[-1].dtype)]),
                "init_noise_sigma": torch.tensor(start * theirs.scale(float(grid.sigmas[0]))),
                "sigmas": visited,
            }
        in_chain = KINDS[scheduler].frame == "chain" if scheduler in KINDS else False
        scales = [(1 + s**2) ** -0.5 if in_chain else 1.0 for s in [*asked[1:], 0.0]]
        seen = [x * s for x, s in zip([*inputs[1:], last], scales, strict=True)]
        return {
            "trajectory": torch.stack(seen),
            "init_noise_sigma": torch.tensor(1.0 if in_chain else start),
            "sigmas": torch.tensor(_listed(solver, asked)),
        } | _draws(solver, asked)

    return results


def _listed(solver: Solver, asked: list[float]) -> list[float]:
    """The noise levels as a scheduler lists them; that of an SDE leaves the middles out."""
    if isinstance(solver, DPMSolverPPSDE):
        first, *others = asked[::2]
        asked = [first, *(level for level in others for _ in range(2))]
    return [*asked, 0.0]


def _draws(solver: Solver, asked: list[float]) -> dict[str, Tensor]:
    if not isinstance(solver, DPMSolverPPSDE):
        return {}
    return {"noise_between": torch.tensor(_between(asked), dtype=torch.float64)}


def _between(asked: list[float]) -> list[tuple[float, float]]:
    """From the start of each step to its middle and to its end."""
    pairs = []
    for start, middle, end in zip(asked[:-2:2], asked[1::2], asked[2::2], strict=True):
        pairs += [(start, middle), (start, end)]
    return pairs


def _expect_all_drawn(noise: Draws, latents: Tensor, *, multiplied_by_0: bool) -> None:
    """A draw of the step to 0 is multiplied by 0 there: ours may leave it out."""
    if multiplied_by_0 and len(noise.rows) == 1:
        noise.rows.pop()
    noise.expect_end()


class Angle(Preconditioning):
    """What IPNDMScheduler takes a network for: told an angle in [0, 1], predicting v."""

    name = "angle"
    sigma_min, sigma_max = 0.0, 1e12

    def coefficients(self, sigma: Tensor) -> Coefficients:
        scale = (1 + sigma**2) ** -0.5
        told = torch.atan(sigma) * 2 / torch.pi
        return Coefficients(c_skip=scale**2, c_out=-sigma * scale, c_in=scale, c_noise=told)

    def time(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma) * 2 / torch.pi


class FlowRecorder(Noting):
    """Notes what a closed-form flow is told: T times the time of the noise level."""

    def told(self, T: int) -> Tensor:
        sigmas = torch.tensor(self.sigmas, dtype=torch.float64)
        return (T * sigmas / (1 + sigmas)).round(decimals=4)  # whole ones are whole in theirs


def hf_flow(run: Run) -> None:
    """A scheduler of flow matching on the closed-form mixture."""
    params = run.params("scheduler", "scheduler_config", "num_inference_steps")
    model = FlowRecorder(mixture(run))
    sampler = diffusers_sampler(
        params["scheduler"], params["scheduler_config"], num_steps=params["num_inference_steps"]
    )
    results = _sample(run, Sampler.from_config(sampler), model, Condition(), params["scheduler"])
    if native := FLOW_METHODS.get(params["scheduler"]):
        _compare_with_ours(run, {**sampler, "solver": native})
    told = model.told(params["scheduler_config"].get("num_train_timesteps", 1000))
    run.expect_all(results([], model.sigmas) | {"timesteps": _as(run, told)})


FLOW_METHODS = {
    "FlowMatchEulerDiscreteScheduler": {"name": "flow", "method": "euler"},
    "FlowMatchHeunDiscreteScheduler": {"name": "flow", "method": "heun"},
}
"""Schedulers that are a solver of ours over their own levels."""


def _compare_with_ours(run: Run, sampler: dict[str, Any]) -> None:
    if run.draws():  # of stochastic_sampling, which ours do not have
        return
    latents = run.input("latents")
    with torch.no_grad():
        *_, last = sample_steps(
            Sampler.from_config(sampler),
            mixture(run),
            noise=Draws(run),
            condition=Condition(),
            image_shape=latents.shape[1:],
            device="cpu",
            latents=latents,
        )
    compare(f"{run.id}: the flow solver", last.x, run.reference("trajectory")[-1])


CHECKS: dict[str, Callable[[Run], None]] = {"hf_flow": hf_flow, "hf_scheduler": hf_scheduler}
