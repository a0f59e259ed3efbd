"""k-diffusion's schedules and discrete levels, restart sampling, and schedules made for a model."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from golden_cases import MismatchError, Run
from golden_solvers import Noting, mixture
from torch import Tensor

from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser, StepInfo
from genlab.diffusion.discrete import Discrete
from genlab.diffusion.ideal import GaussianMixtureDenoiser
from genlab.diffusion.noise import NoiseStream
from genlab.samplers.base import SCHEDULES
from genlab.samplers.gits import shortest_path, step_costs
from genlab.samplers.loop import sample_steps
from genlab.samplers.sampler import Sampler


def kd_schedule(run: Run) -> None:
    """A function ``get_sigmas_*`` of k-diffusion, whatever the model."""
    params = run.params("schedule", "n", "sigma_min", "sigma_max", "rho")
    betas = run.params("beta_d", "beta_min", "eps_s")
    name, options = params.pop("schedule"), {"num_steps": params.pop("n"), **params}
    if name == "vp":
        options |= {"epsilon_s" if key == "eps_s" else key: v for key, v in betas.items()}
    elif name == "polyexponential":
        options = {"rho": 1.0, **options}  # their default
    schedule = SCHEDULES.build(name, **options)
    run.expect_all({"sigmas": schedule(GaussianMixtureDenoiser.noise_levels)})


def kd_discrete(run: Run) -> None:
    """Timesteps of noise levels and back, and the levels of a run over them."""
    [text] = run.params("betas").values()
    model = Discrete(**_betas(run, text), interpolate=True, interpolate_in_log=True)
    rounding = Discrete(**_betas(run, text), interpolate=True, nearest_in_log=True)
    options = {"spacing": "linspace", "fractional": True, "in_log": True}
    schedule = SCHEDULES.build("timesteps", num_steps=run.params("n")["n"], **options)
    sigma, t = run.input("sigma").double(), run.input("t").double()
    run.expect_all(
        {
            "t": model.timestep(sigma),
            "t_quantized": rounding.timestep(sigma),
            "sigma": model.sigma(t),
            "sigmas": schedule(model),
        }
    )


def _betas(run: Run, text: str) -> dict[str, Any]:
    """``linear 1e-4 to 0.02, 1000`` as options of ours."""
    schedule, *ends, T = text.replace(",", "").replace(" to ", " ").split()
    if len(ends) != 2:
        raise MismatchError(f"{run.id}: betas are described as {text!r}, which nobody reads")
    return {
        "schedule": schedule,
        "beta_start": float(ends[0]),
        "beta_end": float(ends[1]),
        "T": int(T),
    }


class ByStep(Noting):
    """The official draws of a restart run, of which every step of ours has one.

    Theirs draw on every step, also where the noise is multiplied by 0; ours draw where they need
    noise. The steps are the same, so each takes the draw of its own number. This stands where the
    model does, to be told of steps, and is the noise of the run.
    """

    def __init__(self, inner: Denoiser, run: Run) -> None:
        super().__init__(inner)
        self.rows = [row for _, row in run.draws_by_kind()]
        self.run, self.steps, self.drawn = run, list[StepInfo](), list[int]()

    def begin_step(self, step: StepInfo) -> None:
        self.steps.append(step)
        super().begin_step(step)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        index = self.steps[-1].index
        if index in self.drawn:
            raise MismatchError(f"{self.run.id}: step {index} draws twice")
        self.drawn.append(index)
        row = self.rows[index]
        assert row.shape[1:] == tuple(shape)
        return row.to(dtype)

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        raise MismatchError(f"{self.run.id}: uniform numbers are drawn, officially they are not")

    def fork(self, key: str) -> "ByStep":
        raise MismatchError(f"{self.run.id}: {key} is drawn, officially there is none")

    def used(self, S_noise: float) -> Tensor:
        """Which of the official draws changed the state."""
        if len(self.steps) != len(self.rows):
            raise MismatchError(f"{self.run.id}: {len(self.steps)} steps, {len(self.rows)} draws")
        changing = [
            S_noise > 0
            and step.index in self.drawn
            and (step.sigma > step.level or step.sigma_next > step.level)
            for step in self.steps
        ]
        return torch.tensor(changing)


def restart_sampler(run: Run, denoiser: Denoiser, condition: Condition) -> None:
    """``restart_sampler`` of the authors; their S_noise is 0 unless it is given."""
    churn = {"S_noise": 0.0, **run.params("S_churn", "S_min", "S_max", "S_noise")}
    schedule = {"name": "karras", **run.params("num_steps", "sigma_min", "sigma_max", "rho")}
    gamma = run.params("restart_gamma").get("restart_gamma", 0.0)
    intervals = _intervals(run, SCHEDULES.build_named(schedule)(denoiser.noise_levels))
    restarts = {"intervals": intervals, "gamma": gamma, "rho": schedule.get("rho", 7.0)}
    solver = {"name": "restart", **restarts, **churn} if intervals else {"name": "heun", **churn}
    sampler = Sampler.from_config({"solver": solver, "schedule": schedule})
    latents, model = run.input("latents"), ByStep(denoiser, run)
    with torch.no_grad():
        *_, last = sample_steps(
            sampler,
            model,
            noise=model,
            condition=condition,
            image_shape=latents.shape[1:],
            device="cpu",
            latents=latents,
        )
    num_steps = sampler.schedule.num_steps
    if sampler.solver.nfe(num_steps) != len(model.sigmas):
        raise MismatchError(f"{run.id}: {len(model.sigmas)} evaluations are not what nfe says")
    run.expect_all(
        {
            "images": last.x,
            "sigma_calls": torch.tensor(model.sigmas, dtype=torch.float64),
            "draw_used": model.used(churn["S_noise"]),
        }
    )


def _intervals(run: Run, levels: Tensor) -> list[list[float]]:
    """Theirs in our order; of several that begin at one level theirs keeps the last."""
    told = json.loads(run.params("restart_info").get("restart_info") or "{}")
    kept = {
        int((levels - low).abs().argmin()): [low, high, points, times]
        for points, times, low, high in told.values()
    }
    return list(kept.values())


def gits(run: Run) -> None:
    """``get_dp_list``: costs of a teacher's straight steps, and the cheapest of so many."""
    levels = run.params("sigma_min", "sigma_max", "rho")
    [num_steps] = run.params("num_steps").values()
    [teacher_steps] = run.params("num_steps_tea").values()
    schedule = {"name": "karras", "num_steps": teacher_steps, **levels}
    latents = run.input("latents")
    teacher = sample_steps(
        Sampler.from_config({"solver": "euler", "schedule": schedule}),
        mixture(run),
        noise=NoiseStream([]),
        condition=Condition(),
        image_shape=latents.shape[1:],
        device="cpu",
        latents=latents,
    )
    sigmas, costs = step_costs(latents, teacher, **run.params("metric"))
    chosen = shortest_path(costs, num_steps, **run.params("coeff"))
    run.expect_all(
        {
            "cost": costs,
            "dp_list": torch.tensor(chosen),
            "t_steps": sigmas,
            "t_chosen": sigmas[list(chosen)],
        }
    )
