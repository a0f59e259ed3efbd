"""Read a diffusers scheduler's config: the parameterisation, and a sampler that does the same.

Every setting is obeyed or refused by name: where a solver of ours draws the same picture it is
taken, and only while all settings are those that it stands for; otherwise diffusers' own scheduler
runs (`genlab.samplers.solvers.diffusers_scheduler`).
"""

import reprlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from genlab.checkpoints.readers.options import Option, integer, number, values_of
from genlab.diffusion.discrete import Discrete
from genlab.errors import ConfigError, nearest
from genlab.samplers.diffusers_schedulers import (
    BETA_SCHEDULES,
    MODEL_OWNED,
    Run,
    beta_settings,
    check_settings,
    defaults_of,
)
from genlab.samplers.diffusers_schedulers import KINDS as RUN
from genlab.samplers.schedules.diffusers_scheduler import diffusers_sampler
from genlab.samplers.schedules.timesteps import SPACINGS

SCHEDULES = {theirs: ours for ours, theirs in BETA_SCHEDULES.items()}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned": "learned",
    "learned_range": "learned_range",
}


class ReplacedSchedulerWarning(UserWarning):
    """A folder is sampled otherwise than its scheduler would: by the same method, other draws."""


@dataclass(frozen=True, kw_only=True)
class _Native:
    """A scheduler of diffusers that is a solver of ours.

    Attributes:
        solver: our solver's config.
        obeyed: settings that any value of is obeyed; all others must have diffusers' default.
        allowed: settings -> values for which the two are the same.
        holds: what else they have to fulfil for every number of steps, since that may be changed
            after a folder is read: settings -> whether they do.
        open_end: see `genlab.samplers.schedules.timesteps.Timesteps`.
        continuous: whether it visits noise levels between timesteps.
    """

    solver: Mapping[str, Any]
    obeyed: tuple[str, ...] = ()
    allowed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    holds: Callable[[Mapping[str, Any]], bool] = lambda settings: True
    open_end: bool = False
    continuous: bool = False

    def differing(self, settings: Mapping[str, Any], name: str) -> list[str]:
        """The settings of a scheduler with which it draws another picture."""
        changed = []
        for setting, default in _defaults(name).items():
            value = settings.get(setting)
            allowed = self.allowed.get(setting, (default, None if default is False else default))
            free = setting in (*_BY_THE_MODEL, *self.obeyed) or setting not in settings
            if not free and not any(value == each for each in allowed):
                changed.append(setting)
        return changed

    def stands_for(self, settings: Mapping[str, Any], name: str) -> bool:
        """Whether it draws the pictures of a scheduler with these settings, in any step count."""
        return not self.differing(settings, name) and self.holds(settings)


def _ends_where_the_next_begins(settings: Mapping[str, Any]) -> bool:
    """DDIM and DDPM step ``T // num_steps`` timesteps down, wherever the next one begins."""
    # With an offset as large as a step, the last one does not lead to the image.
    return settings["timestep_spacing"] == "leading" and settings["steps_offset"] == 0


def _draws_its_variance(settings: Mapping[str, Any]) -> bool:
    """DDPM draws with the logarithm of the variance where it is ``fixed_large_log``."""
    log = settings["variance_type"] == "fixed_large_log"
    return not log and _ends_where_the_next_begins(settings)


def _knows_no_pure_noise(settings: Mapping[str, Any]) -> bool:
    """These take sigma 4096 for pure noise, and a step from there is not one from more."""
    return not settings.get("rescale_betas_zero_snr")


def _keeps_its_order(settings: Mapping[str, Any]) -> bool:
    """Of order 3, fewer than 15 steps end with one of order 2, and the SDE is another one."""
    is_ode = settings["algorithm_type"] == "dpmsolver++"
    return _knows_no_pure_noise(settings) and (
        settings["solver_order"] < 3 or (is_ode and not settings["lower_order_final"])
    )


def _starts_from_noise(settings: Mapping[str, Any]) -> bool:
    """With ``leading`` timesteps these start from a little more noise than the first level."""
    # Their largest level is one in float32, where 1 - beta of a cosine schedule has five digits.
    cosine = settings["beta_schedule"] == "squaredcos_cap_v2"
    even = settings["timestep_spacing"] != "leading"
    return even and not cosine and _knows_no_pure_noise(settings)


def _predicts_no_image(settings: Mapping[str, Any]) -> bool:
    """This one refuses models that predict the image."""
    return settings["prediction_type"] != "sample" and _starts_from_noise(settings)


def _spans_the_levels(settings: Mapping[str, Any]) -> bool:
    """Uneven levels of this one lie between the first and the last of its timesteps."""
    uneven = any(settings.get(option) for option in _UNEVEN)
    whole = not uneven or settings["timestep_spacing"] == "linspace"
    return whole and settings["timestep_spacing"] != "leading"


_UNEVEN = ("use_karras_sigmas", "use_exponential_sigmas")

_DDPM = _Native(
    solver={"name": "ddpm"},
    obeyed=("variance_type", "clip_sample"),
    holds=_draws_its_variance,
)
_DDIM = _Native(solver={"name": "ddim"}, obeyed=("clip_sample",), holds=_ends_where_the_next_begins)

NATIVE: Mapping[str, _Native] = {
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "EulerDiscreteScheduler": _Native(
        solver={"name": "euler"}, continuous=True, holds=_starts_from_noise
    ),
    "HeunDiscreteScheduler": _Native(
        solver={"name": "heun"}, continuous=True, holds=_starts_from_noise
    ),
    "EulerAncestralDiscreteScheduler": _Native(
        solver={"name": "euler-ancestral"}, continuous=True, holds=_predicts_no_image
    ),
    "LMSDiscreteScheduler": _Native(
        solver={"name": "lms", "max_order": 4, "full_last_step": True},
        continuous=True,
        holds=_starts_from_noise,
    ),
    "DPMSolverSDEScheduler": _Native(
        solver={"name": "dpmpp-sde"},
        # Every sample has a seed of its own here.
        obeyed=("noise_sampler_seed", *_UNEVEN),
        continuous=True,
        holds=_spans_the_levels,
    ),
    "DPMSolverMultistepScheduler": _Native(
        solver={"name": "dpmpp", "unit_start": True},
        # Its last step leads to 0, which is of first order whatever these say.
        obeyed=("use_karras_sigmas", "variance_type", "euler_at_final", "lower_order_final"),
        allowed={
            "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
            "solver_order": (1, 2, 3),
            "solver_type": ("midpoint", "heun"),
        },
        holds=_keeps_its_order,
        open_end=True,
    ),
    "UniPCMultistepScheduler": _Native(
        solver={"name": "unipc", "unit_start": True},
        obeyed=("use_karras_sigmas",),
        holds=_knows_no_pure_noise,
        open_end=True,
    ),
}
"""Schedulers of diffusers that are solvers of ours, as long as their settings allow it."""

READ = (*(name for name, kind in RUN.items() if kind.frame in ("chain", "unscaled")),
        "DPMSolverSDEScheduler")  # fmt: skip
"""Schedulers of discrete models. Others mean other models: flows, consistency models, other noise
levels."""

_LMS_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "timestep_spacing": "linspace",
    "steps_offset": 0,
}  # fmt: skip
_OUR_DEFAULTS: Mapping[str, dict[str, Any]] = {
    "LMSDiscreteScheduler": _LMS_DEFAULTS,
    "DPMSolverSDEScheduler": {
        **_LMS_DEFAULTS, "beta_start": 0.00085, "beta_end": 0.012, "noise_sampler_seed": None
    },
}  # fmt: skip
"""Of schedulers whose classes need packages that GenLab does without."""

_NUM_STEPS = {
    "DDPMScheduler": 1000, "DDPMParallelScheduler": 1000, "LCMScheduler": 4, "TCDScheduler": 4,
    "DPMSolverMultistepScheduler": 25, "DPMSolverSinglestepScheduler": 25,
    "DEISMultistepScheduler": 25, "SASolverScheduler": 25, "UniPCMultistepScheduler": 25,
}  # fmt: skip
"""Steps that pipelines take by default; 50 of any other scheduler."""

_NUMBERS = {
    "num_train_timesteps": integer(1, 100_000),
    "beta_start": number(0, 1),
    "beta_end": number(0, 1),
    "steps_offset": integer(0, 100_000),
}
# Clipped to what the model knows.
_WHOLE_RANGE = {"sigma_min": 1e-6, "sigma_max": 1e6}

_BY_THE_MODEL = (*MODEL_OWNED, "prediction_type", "timestep_spacing", "steps_offset")
"""Settings that the preconditioning and the schedule of timesteps obey, whatever the solver."""

_SWITCHES = {
    "dynamic_thresholding_ratio": "thresholding",
    "sample_max_value": "thresholding",
    "clip_sample_range": "clip_sample",
    "flow_shift": "use_flow_sigmas",
    "time_shift_type": "use_dynamic_shifting",
}
"""Settings without effect -> while this one is off."""

_OTHER_MODELS = {
    "trained_betas": (None,),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "timestep_type": ("discrete",),
}
"""Settings -> the only values for which the model is one of GenLab's discrete models."""

_OF_OURS = ("variance_type", "clip_sample", "use_clipped_model_output")
"""Settings that are read of every scheduler: diffusers passes over them where it has none."""


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """The result of parsing a scheduler's config.

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
        ConfigError: it means something that GenLab has no model for, or that diffusers itself
            refuses; names the setting.
    """
    name = _name(config)
    _refuse_unknown(name, config)
    for option, values in _OTHER_MODELS.items():
        if config.get(option, values[0]) not in values:
            raise ConfigError(
                f"the scheduler's {option} = {reprlib.repr(config[option])} is not supported; "
                f"GenLab reads models with {option} = {values[0]}"
            )
    own = _defaults(name)
    config = _without_nulls(config, own)
    options = {k: Option(own.get(k, 0), check) for k, check in _NUMBERS.items()}
    numbers = values_of(name, options, config)
    spacings = {spacing: spacing for spacing in SPACINGS}
    spacing = _translate(
        config, "timestep_spacing", own.get("timestep_spacing", "linspace"), spacings
    )
    schedule = _translate(config, "beta_schedule", own["beta_schedule"], SCHEDULES)
    fixed_variance = _translate(config, "variance_type", "fixed_small", VARIANCES)
    prediction = _translate(config, "prediction_type", own["prediction_type"], PREDICTIONS)
    settings = _in_effect({**own, **{k: v for k, v in config.items() if k in own}, **numbers})
    settings["timestep_spacing"] = spacing
    if settings.get("rescale_betas_zero_snr") and prediction == "epsilon":
        raise ConfigError(
            "the scheduler's rescale_betas_zero_snr makes the last timestep noise alone, where a "
            "model cannot find the image by predicting the noise; give prediction_type "
            "v_prediction or sample, or rescale_betas_zero_snr=false"
        )
    steps = _steps(name, numbers["num_train_timesteps"], num_steps)
    native = NATIVE.get(name)
    if native is not None and not native.stands_for(settings, name):
        if name not in RUN:
            raise ConfigError(
                f"GenLab samples a {name} by its own {native.solver['name']}, which does not do "
                f"{', '.join(native.differing(settings, name)) or _timesteps_of(settings)}; leave "
                "it out, or name another scheduler"
            )
        native = None
    by_ends = schedule != "cosine"
    even = native is not None and not native.continuous and settings.get("use_karras_sigmas")
    variance = _variance(name, fixed_variance, predicts_variance)
    preconditioning = Discrete(
        schedule=schedule,
        T=numbers["num_train_timesteps"],
        prediction=prediction,
        variance=variance,
        interpolate=_is_continuous(name, settings),
        interpolate_in_log=name == "DPMSolverSDEScheduler",
        nearest_in_log=bool(even),
        zero_terminal_snr=bool(settings.get("rescale_betas_zero_snr")),
        beta_start=numbers["beta_start"] if by_ends else None,
        beta_end=numbers["beta_end"] if by_ends else None,
    )
    if native is None:
        return Scheduling(
            preconditioning=preconditioning,
            sampler=_theirs(name, config, steps, preconditioning),
        )
    solver = {**native.solver, **_solver_options(name, config, settings)}
    if name not in RUN:
        warnings.warn(
            f"the scheduler {name} is replaced by GenLab's own {solver['name']}: the same method, "
            "with noise that the seed of each image decides",
            ReplacedSchedulerWarning,
            stacklevel=2,
        )
    if solver["name"] == "ddpm" and variance != fixed_variance:
        solver["variance"] = fixed_variance
    return Scheduling(
        preconditioning=preconditioning,
        sampler={"solver": solver, "schedule": _schedule(settings, native, steps)},
    )


def _without_nulls(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, those that are null as diffusers takes them.

    Raises:
        ConfigError: a setting is null that diffusers computes with.
    """
    kept = dict(config)
    for setting, default in own.items():
        if setting not in config or config[setting] is not None or default is None:
            continue
        if isinstance(default, bool):
            kept[setting] = False
        elif setting == "variance_type":
            kept[setting] = default  # DDPM reads null as its default
        else:
            raise ConfigError(
                f"the scheduler's {setting} is null; leave it out for diffusers' {default!r}"
            )
    return kept


def _variance(name: str, variance: str, predicts_variance: bool) -> str:
    """The variance of the model, whose network may predict one whatever the scheduler says.

    Raises:
        ConfigError: the scheduler wants one that the network does not predict.
    """
    learned = variance.startswith("learned")
    if predicts_variance:
        return variance if learned else "learned_range"
    if learned and name.startswith("DDPM"):
        raise ConfigError(
            f"the scheduler's variance_type {variance} needs a network of twice as many output "
            "channels, and this one predicts no variance; take fixed_small or fixed_large"
        )
    return "fixed_small" if learned else variance


def _steps(name: str, T: int, num_steps: int | None) -> int:
    """The steps of the sampler.

    Raises:
        ConfigError: more are asked for than the model has timesteps.
    """
    if num_steps is not None and num_steps > T:
        raise ConfigError(
            f"num_steps {num_steps} is more than the model's {T} timesteps "
            "(num_train_timesteps); lower it"
        )
    return num_steps or min(_NUM_STEPS.get(name, 50), T)


def _timesteps_of(settings: Mapping[str, Any]) -> str:
    uneven = [option for option in _UNEVEN if settings.get(option)]
    return " with ".join([f"{settings['timestep_spacing']} timesteps", *uneven])


def _name(config: Mapping[str, Any]) -> str:
    name = config.get("_class_name", "DDPMScheduler")
    if not isinstance(name, str) or name not in READ:
        raise ConfigError(
            f"the scheduler {reprlib.repr(name)} is none of a discrete model that GenLab knows; "
            f"{nearest(str(name)[:40], READ)}"
        )
    return name


def _defaults(name: str) -> dict[str, Any]:
    return _OUR_DEFAULTS[name] if name in _OUR_DEFAULTS else defaults_of(name)


def _refuse_unknown(name: str, config: Mapping[str, Any]) -> None:
    """Refuse settings of no scheduler; those of another one are without effect there, too.

    Null, as old configs have ``timestep_values``, sets nothing.
    """
    all_settings = {setting for each in READ for setting in _defaults(each)} | {*_OF_OURS}
    for setting in config:
        if setting.startswith("_") or config[setting] is None:
            continue
        if setting not in all_settings:
            raise ConfigError(
                f"the scheduler's {reprlib.repr(setting)} is no setting of a {name}; "
                f"{nearest(setting[:40], all_settings)}"
            )


def _in_effect(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, those that are switched off at some value of no consequence."""
    off = {
        setting: None
        for setting, switch in _SWITCHES.items()
        if setting in settings and not settings.get(switch)
    }
    return {key: value for key, value in settings.items() if key not in off}


def _is_continuous(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the model has to know noise levels between its timesteps."""
    in_own_frame = name == "DPMSolverSDEScheduler" or RUN[name].frame == "unscaled"
    uneven = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    return in_own_frame or any(settings.get(option) for option in uneven)


def _solver_options(
    name: str, config: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of our solver that follow from the settings."""
    if name.startswith("DD"):
        clip = bool(settings["clip_sample"])
        if name.startswith("DDPM") or not clip:
            return {"clip": clip}
        return {"clip": clip, "keep_noise": not config.get("use_clipped_model_output", False)}
    if name != "DPMSolverMultistepScheduler":
        return {}
    return {
        "max_order": settings["solver_order"],
        "correction": settings["solver_type"],
        "sde": settings["algorithm_type"] == "sde-dpmsolver++",
    }


def _schedule(settings: Mapping[str, Any], native: _Native, steps: int) -> dict[str, Any]:
    if settings.get("use_karras_sigmas"):
        return {"name": "karras", "num_steps": steps, **_WHOLE_RANGE}
    if settings.get("use_exponential_sigmas"):
        return {"name": "exponential", "num_steps": steps, **_WHOLE_RANGE}
    spacing = settings["timestep_spacing"]
    options = {
        "offset": settings["steps_offset"] if spacing == "leading" else 0,
        "open_end": native.open_end and spacing != "trailing",
        "fractional": native.continuous and spacing == "linspace",
    }
    return {
        "name": "timesteps",
        "num_steps": steps,
        "spacing": spacing,
        **{option: value for option, value in options.items() if value},
    }


def _theirs(
    name: str, config: Mapping[str, Any], steps: int, preconditioning: Discrete
) -> dict[str, Any]:
    """The sampler that runs the scheduler itself.

    Raises:
        ConfigError: it refuses its settings, or draws what is not a number with them.
    """
    own = defaults_of(name)
    kept = {
        setting: value
        for setting, value in config.items()
        if setting in own and setting not in MODEL_OWNED and value != own[setting]
    }
    kept.pop("prediction_type", None)  # is that of the model
    clipped = "use_clipped_model_output"
    step = {clipped: True} if name.startswith("DDIM") and config.get(clipped) else {}
    sampler = diffusers_sampler(name, kept, num_steps=steps, step=step)
    check_settings(name, kept, step)
    Run(name, kept, steps, preconditioning).rehearse(step)
    return sampler


def _translate(config: Mapping[str, Any], option: str, default: str, names: dict[str, str]) -> str:
    value = config.get(option)
    if value is None:  # as the multistep solvers say variance_type
        value = default
    if not isinstance(value, str) or value not in names:
        raise ConfigError(
            f"the scheduler's {option} {value!r} is not supported; {nearest(str(value), names)}"
        )
    return names[value]


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
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    return {
        "_class_name": "DDIMScheduler",
        **beta_settings(preconditioning),
        "rescale_betas_zero_snr": preconditioning.zero_terminal_snr,
        "prediction_type": predictions[preconditioning.prediction],
        "variance_type": preconditioning.variance,  # which DDIM passes over and the reader does not
        "clip_sample": clip,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
