"""What a scheduler's config of diffusers says: the parameterisation, and how it would sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genlab.diffusion.discrete import Discrete
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
        open_end: see `genlab.samplers.timesteps.Timesteps`.
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
"""Schedulers of diffusers that are solvers of ours; a model with another one is sampled by DDIM."""

_TYPES = {
    "num_train_timesteps": int,
    "beta_start": float,
    "beta_end": float,
    "steps_offset": int,
    "clip_sample_range": float,
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
    name = config.get("_class_name", "DDPMScheduler")
    kind = KINDS.get(str(name), KINDS["DDIMScheduler"])
    for option, neutral in _NEUTRAL.items():
        if config.get(option, neutral) not in (neutral, None):
            raise ConfigError(
                f"the scheduler's {option} = {config[option]!r} is not supported; GenLab reads "
                f"models with {option} = {neutral}"
            )
    for option, wanted in _TYPES.items():
        value = config.get(option, 0)
        if isinstance(value, bool) or not isinstance(value, int | wanted):
            raise ConfigError(f"the scheduler's {option} must be a number, got {value!r}")
    schedule = _translate(config, "beta_schedule", "linear", SCHEDULES)
    said = _translate(config, "variance_type", "fixed_small", VARIANCES)
    karras = bool(config.get("use_karras_sigmas", False))
    if karras and not kind.open_end:
        raise ConfigError(
            f"use_karras_sigmas is not supported with the {name}; set the sampler's schedule to "
            "karras once the model is converted"
        )
    variance = "learned_range" if predicts_variance and not said.startswith("learned") else said
    ends = (None, None) if schedule == "cosine" else _ends(config)
    preconditioning = Discrete(
        schedule=schedule,
        T=config.get("num_train_timesteps", 1000),
        prediction=_translate(config, "prediction_type", "epsilon", PREDICTIONS),
        variance=variance,
        interpolate=kind.continuous or karras,
        nearest_in_log=karras,
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        beta_start=ends[0],
        beta_end=ends[1],
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
    if kind not in kinds:
        raise ConfigError(
            f"the scheduler's algorithm_type {kind!r} is not supported; {nearest(str(kind), kinds)}"
        )
    return kinds[kind]


def _ends(config: Mapping[str, Any]) -> tuple[float, float]:
    return float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))


def _translate(config: Mapping[str, Any], option: str, default: str, known: dict[str, str]) -> str:
    value = config.get(option, default)
    if value not in known:
        raise ConfigError(
            f"the scheduler's {option} {value!r} is not supported; {nearest(str(value), known)}"
        )
    return known[value]


def scheduler_config(preconditioning: Discrete, *, clip: bool) -> dict[str, Any]:
    """The config of a DDIMScheduler for a model of ours; `parse_scheduler` reads it back."""
    back = [{ours: theirs for theirs, ours in table.items()} for table in (SCHEDULES, PREDICTIONS)]
    defaults = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (1e-4, 0.02)}
    low, high = defaults[preconditioning.schedule]
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": preconditioning.T,
        "beta_schedule": back[0][preconditioning.schedule],
        "beta_start": preconditioning.beta_start or low,
        "beta_end": preconditioning.beta_end or high,
        "prediction_type": back[1][preconditioning.prediction],
        "clip_sample": clip,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
