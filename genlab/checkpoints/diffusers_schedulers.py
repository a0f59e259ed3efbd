"""What a scheduler's config of diffusers says: the parameterisation, and how it would sample."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genlab.checkpoints.options import Option, integer, number, values_of
from genlab.diffusion.discrete import Discrete, betas
from genlab.errors import ConfigError, nearest

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned": "learned",
    "learned_range": "learned_range",
}


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One scheduler of diffusers: its own defaults and the solver that it is.

    Attributes:
        solver: our solver's config.
        spacing: its default.
        num_steps: steps that its pipelines take by default.
        clips: whether it clips x0 unless told otherwise; None where it never does.
        open_end: see `genlab.samplers.schedules.timesteps.Timesteps`.
        continuous: whether it visits noise levels between timesteps.
    """

    solver: Mapping[str, Any]
    spacing: str
    num_steps: int = 50
    clips: bool | None = None
    open_end: bool = False
    continuous: bool = False


KINDS = {
    "DDPMScheduler": _Kind(solver={"name": "ddpm"}, spacing="leading", num_steps=1000, clips=True),
    "DDIMScheduler": _Kind(solver={"name": "ddim"}, spacing="leading", clips=True),
    "EulerDiscreteScheduler": _Kind(solver={"name": "euler"}, spacing="linspace", continuous=True),
    "HeunDiscreteScheduler": _Kind(solver={"name": "heun"}, spacing="linspace", continuous=True),
    "EulerAncestralDiscreteScheduler": _Kind(
        solver={"name": "euler-ancestral"}, spacing="linspace", continuous=True
    ),
    "DPMSolverMultistepScheduler": _Kind(
        solver={"name": "dpmpp-2m", "unit_start": True},
        spacing="linspace",
        num_steps=25,
        open_end=True,
    ),
    "UniPCMultistepScheduler": _Kind(
        solver={"name": "unipc", "unit_start": True},
        spacing="linspace",
        num_steps=25,
        open_end=True,
    ),
}
"""Schedulers of diffusers that are solvers of ours."""

_BY_DDIM = _Kind(solver={"name": "ddim"}, spacing="leading", clips=False)
SAMPLED_BY_DDIM = (
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)
"""Schedulers of the same discrete models whose solvers are not ours.

Others mean other models: flows, consistency models, other noise levels.
"""

_NUMBERS = {
    "num_train_timesteps": Option(1000, integer(1, 100_000)),
    "beta_start": Option(1e-4, number(0, 1)),
    "beta_end": Option(0.02, number(0, 1)),
    "steps_offset": Option(0, integer(0, 100_000)),
}
# Clipped to what the model knows.
_WHOLE_RANGE = {"sigma_min": 1e-6, "sigma_max": 1e6}
# Values that mean nothing to us only as long as they are these.
_NEUTRAL = {
    "trained_betas": None,
    "thresholding": False,
    "clip_sample_range": 1.0,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "lower_order_final": True,
    "euler_at_final": False,
    "solver_order": 2,
    "final_sigmas_type": "zero",
}


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """What became of a scheduler's config.

    Attributes:
        preconditioning: of the model.
        sampler: config of the sampler that the scheduler is.
    """

    preconditioning: Discrete
    sampler: dict[str, Any]


def parse_scheduler(
    config: Mapping[str, Any], *, predicts_variance: bool, num_steps: int | None = None
) -> Scheduling:
    """Read a scheduler's config.

    Args:
        config: as ``scheduler_config.json`` holds it; what is left out takes diffusers' defaults.
        predicts_variance: whether the network has output channels for it.
        num_steps: of the sampler; None is what diffusers' pipelines take.

    Raises:
        ConfigError: it means something that GenLab has no model or solver for.
    """
    name, kind = _kind(config)
    for option, neutral in _NEUTRAL.items():
        if config.get(option, neutral) not in (neutral, None):
            raise ConfigError(
                f"the scheduler's {option} = {config[option]!r} is not supported; GenLab reads "
                f"models with {option} = {neutral}"
            )
    numbers = values_of(name, _NUMBERS, config)
    schedule = _translate(config, "beta_schedule", "linear", SCHEDULES)
    said = _translate(config, "variance_type", "fixed_small", VARIANCES)
    karras = bool(config.get("use_karras_sigmas", False))
    if karras and not kind.open_end:
        raise ConfigError(
            f"use_karras_sigmas is not supported with the {name}; set the sampler's schedule to "
            "karras once the model is converted"
        )
    variance = "learned_range" if predicts_variance and not said.startswith("learned") else said
    by_ends = schedule != "cosine"
    preconditioning = Discrete(
        schedule=schedule,
        T=numbers["num_train_timesteps"],
        prediction=_translate(config, "prediction_type", "epsilon", PREDICTIONS),
        variance=variance,
        interpolate=kind.continuous or karras,
        nearest_in_log=karras,
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        beta_start=numbers["beta_start"] if by_ends else None,
        beta_end=numbers["beta_end"] if by_ends else None,
    )
    solver = dict(kind.solver)
    if kind.clips is not None:
        solver["clip"] = bool(config.get("clip_sample", kind.clips))
    if solver["name"] == "ddim" and solver["clip"]:
        solver["keep_noise"] = not config.get("use_clipped_model_output", False)
    if solver["name"] == "ddpm" and variance != said:
        solver["variance"] = said
    if solver["name"] == "dpmpp-2m":
        solver["sde"] = _is_stochastic(config)
    return Scheduling(
        preconditioning=preconditioning,
        sampler={"solver": solver, "schedule": _schedule(config, kind, num_steps)},
    )


def _kind(config: Mapping[str, Any]) -> tuple[str, _Kind]:
    name = config.get("_class_name", "DDPMScheduler")
    kinds = {**dict.fromkeys(SAMPLED_BY_DDIM, _BY_DDIM), **KINDS}
    if not isinstance(name, str) or name not in kinds:
        raise ConfigError(
            f"the scheduler {reprlib.repr(name)} is none of a discrete model that GenLab knows; "
            f"{nearest(str(name)[:40], kinds)}"
        )
    return name, kinds[name]


def _schedule(config: Mapping[str, Any], kind: _Kind, num_steps: int | None) -> dict[str, Any]:
    steps = min(num_steps or kind.num_steps, config.get("num_train_timesteps", 1000))
    if config.get("use_karras_sigmas"):
        return {"name": "karras", "num_steps": steps, **_WHOLE_RANGE}
    spacing = config.get("timestep_spacing", kind.spacing)
    options = {
        "offset": config.get("steps_offset", 0) if spacing == "leading" else 0,
        "open_end": kind.open_end and spacing != "trailing",
        "fractional": kind.continuous and spacing == "linspace",
    }
    return {
        "name": "timesteps",
        "num_steps": steps,
        "spacing": spacing,
        **{option: value for option, value in options.items() if value},
    }


def _is_stochastic(config: Mapping[str, Any]) -> bool:
    if config.get("solver_type", "midpoint") != "midpoint":
        raise ConfigError(
            f"the scheduler's solver_type {config['solver_type']!r} is not supported; GenLab has "
            "the midpoint rule"
        )
    kinds = {"dpmsolver++": False, "sde-dpmsolver++": True}
    kind = config.get("algorithm_type", "dpmsolver++")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"the scheduler's algorithm_type {kind!r} is not supported; {nearest(str(kind), kinds)}"
        )
    return kinds[kind]


def _translate(config: Mapping[str, Any], option: str, default: str, known: dict[str, str]) -> str:
    value = config.get(option)
    if value is None:  # as the multistep solvers say variance_type
        value = default
    if not isinstance(value, str) or value not in known:
        raise ConfigError(
            f"the scheduler's {option} {value!r} is not supported; {nearest(str(value), known)}"
        )
    return known[value]


def scheduler_config(preconditioning: Discrete, *, clip: bool) -> dict[str, Any]:
    """The config of a DDIMScheduler for a model of ours; `parse_scheduler` reads it back.

    Raises:
        ConfigError: diffusers would tell the network other timesteps.
    """
    if preconditioning.rescale_timesteps and preconditioning.T != 1000:
        raise ConfigError(
            "diffusers tells networks the timestep itself, and this one was trained on "
            f"1000 t / {preconditioning.T} (rescale_timesteps); it cannot be written for diffusers"
        )
    back = [{ours: theirs for theirs, ours in table.items()} for table in (SCHEDULES, PREDICTIONS)]
    start, end = preconditioning.beta_start, preconditioning.beta_end
    table = betas(preconditioning.schedule, preconditioning.T, start, end)
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": preconditioning.T,
        "beta_schedule": back[0][preconditioning.schedule],
        "beta_start": float(table[0]) if start is None else start,
        "beta_end": float(table[-1]) if end is None else end,
        "rescale_betas_zero_snr": preconditioning.zero_terminal_snr,
        "prediction_type": back[1][preconditioning.prediction],
        "variance_type": preconditioning.variance,  # which DDIM passes over and the reader does not
        "clip_sample": clip,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
