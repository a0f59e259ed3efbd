"""diffusers' schedulers inside our loop: which are supported, in which frame, with what settings.

A scheduler of diffusers is given a network's output at a timestep of its own choice and returns the
next state; it keeps its history in itself. Here one is built for one run: `Run` says which of its
calls make a step of ours, where each call asks the model, and how its state reads in the unscaled
frame.
"""

import copy
import inspect
import json
import math
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils.import_utils import DummyObject
from jaxtyping import Float64
from torch import Tensor

from genlab.diffusion.denoiser import State
from genlab.diffusion.discrete import Discrete, betas
from genlab.diffusion.flow import LARGEST
from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError, nearest

Settings = Mapping[str, Any]

BETA_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
"""Our names of schedules of betas -> diffusers'."""

PURE_NOISE = 2.0**23
"""Above this a discrete model's largest noise level stands for noise alone."""

LEAST = 1e-6
"""The noise level that stands for 0 where a flow's rounded timestep is 0."""

MODEL_OWNED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
"""Settings that say which noise levels a discrete model was trained at."""


def never(settings: Settings) -> bool:
    """Of schedulers that draw nothing."""
    return False


def always(settings: Settings) -> bool:
    """Of schedulers that draw in every run."""
    return True


def if_churned(settings: Settings) -> bool:
    """Of EDM's kind."""
    return bool(settings.get("s_churn", 0))


def if_stochastic(settings: Settings) -> bool:
    """Of flow matching with fresh noise in each step."""
    return bool(settings.get("stochastic_sampling")) or if_churned(settings)


def if_sde(settings: Settings) -> bool:
    """Of the DPM-Solver family."""
    return str(settings.get("algorithm_type", "")).startswith("sde")


def if_eta(settings: Settings) -> bool:
    """Of DDIM's kind."""
    return bool(settings.get("eta", 0))


@dataclass(frozen=True)
class Kind:
    """The frame and the noise of one scheduler of diffusers.

    Attributes:
        frame: ``chain`` (unit variance, as in DDPM), ``unscaled`` (ours), ``flow`` (``(1 - s) x0 +
            s n``) or ``angle`` (``cos x0 + sin n`` with the timestep an angle in [0, 1]).
        draws: whether it draws noise with given settings.
    """

    frame: str
    draws: Callable[[Settings], bool] = never


KINDS: Mapping[str, Kind] = {
    "DDIMParallelScheduler": Kind("chain", if_eta),
    "DDIMScheduler": Kind("chain", if_eta),
    "DDPMParallelScheduler": Kind("chain", always),
    "DDPMScheduler": Kind("chain", always),
    "DEISMultistepScheduler": Kind("chain"),
    "DPMSolverMultistepScheduler": Kind("chain", if_sde),
    "DPMSolverSinglestepScheduler": Kind("chain", if_sde),
    "EulerAncestralDiscreteScheduler": Kind("unscaled", always),
    "EulerDiscreteScheduler": Kind("unscaled", if_churned),
    "FlowMatchEulerDiscreteScheduler": Kind("flow", if_stochastic),
    "FlowMatchHeunDiscreteScheduler": Kind("flow", if_churned),
    "HeunDiscreteScheduler": Kind("unscaled"),
    "IPNDMScheduler": Kind("angle"),
    "KDPM2AncestralDiscreteScheduler": Kind("unscaled", always),
    "KDPM2DiscreteScheduler": Kind("unscaled"),
    "LCMScheduler": Kind("chain", always),
    "LMSDiscreteScheduler": Kind("unscaled"),
    "PNDMScheduler": Kind("chain"),
    "SASolverScheduler": Kind("chain", always),
    "TCDScheduler": Kind("chain", always),
    "UniPCMultistepScheduler": Kind("chain"),
}
"""The schedulers that can be run. No other name is ever looked up in diffusers: the rest are for
other frames (EDM, consistency models, tokens) or draw from a source of their own."""

NATIVE_INSTEAD = {
    "DPMSolverSDEScheduler": "dpmpp-sde, whose Brownian paths do not depend on the batch",
    "RePaintScheduler": "inpainting of the pipelines",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp",
}
"""Schedulers that are left out because a solver of ours does the same for every model."""

_LARGEST_NUMBER = 100_000
_LONGEST = 40
"""Settings may come from a file: what they could make diffusers allocate is bounded."""

_NO_DATA = ("tau_func", "solver_p")
"""Settings that are a function and a scheduler."""

_NOT_STEP_OPTIONS = {
    "self",
    "model_output",
    "timestep",
    "sample",
    "generator",
    "variance_noise",
    "per_token_timesteps",
    "return_dict",
}

_SPACES = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow-v",
}
"""diffusers' prediction types by our names of spaces."""

_OURS = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}


def class_of(scheduler: str) -> type[Any]:
    """The class of diffusers with this name.

    Raises:
        ConfigError: it is none of those that can be run, or diffusers lacks a package for it.
    """
    if scheduler in NATIVE_INSTEAD:
        raise ConfigError(
            f"{scheduler} of diffusers is not run by GenLab; take {NATIVE_INSTEAD[scheduler]}"
        )
    if scheduler not in KINDS:
        raise ConfigError(
            f"there is no scheduler {scheduler!r} of diffusers that GenLab runs; "
            f"{nearest(scheduler, KINDS)}"
        )
    cls: type[Any] = getattr(diffusers, scheduler)
    if isinstance(cls, DummyObject):
        packages = ", ".join(name for name in cls._backends if name != "torch")
        raise ConfigError(f"{scheduler} of diffusers needs the package {packages}; install it")
    return cls


def defaults_of(scheduler: str) -> dict[str, Any]:
    """The settings of a scheduler with their defaults.

    Raises:
        ConfigError: see `class_of`.
    """
    parameters = inspect.signature(class_of(scheduler).__init__).parameters
    return {name: each.default for name, each in parameters.items() if name != "self"}


def step_options_of(scheduler: str) -> dict[str, Any]:
    """What a scheduler's step takes beside the state, with its defaults; see `defaults_of`."""
    parameters = inspect.signature(class_of(scheduler).step).parameters
    return {
        name: each.default for name, each in parameters.items() if name not in _NOT_STEP_OPTIONS
    }


def check_settings(scheduler: str, config: Settings, step: Settings) -> None:
    """Refuse settings that a scheduler does not have.

    Raises:
        ConfigError: names the setting and the nearest one.
    """
    for settings, defaults, title in (
        (config, defaults_of(scheduler), "setting"),
        (step, step_options_of(scheduler), "option of its step"),
    ):
        for name in settings:
            if name not in defaults:
                raise ConfigError(
                    f"{scheduler} of diffusers {diffusers.__version__} has no {title} {name!r}; "
                    f"{nearest(name, defaults)}"
                )
            expected = _expected(defaults[name], settings[name])
            if expected or (name in _NO_DATA and settings[name] is not None):
                raise ConfigError(
                    f"{name} of {scheduler} must be {expected or 'left out'}, got "
                    f"{reprlib.repr(settings[name])}"
                )


def _expected(default: Any, value: Any) -> str:
    """What a value must be instead, going by the default; empty where it is that."""
    if value == default:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, str):
        return "" if isinstance(value, str) and len(value) <= _LONGEST else "a name"
    if isinstance(default, int | float):
        return "" if _is_number(value) else f"a number within {_LARGEST_NUMBER:g}"
    plain = isinstance(value, bool | str) or _is_number(value)
    short = isinstance(value, list | tuple) and len(value) <= _LARGEST_NUMBER
    return "" if plain or (short and all(map(_is_number, value))) else "a plain value"


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER
    )


class Run:
    """A scheduler of diffusers, built for one run.

    Args:
        name: the scheduler's class.
        config: its settings, without those that the model decides.
        num_steps: diffusers' ``num_inference_steps``.
        noise_levels: of the model; None takes the scheduler's own.

    Attributes:
        scheduler: the object of diffusers, its timesteps set.
        calls: for each step of ours the numbers of the scheduler's calls in it.

    Raises:
        ConfigError: the scheduler refuses the settings, the model does not know the noise levels
            that it asks at, or these do not decrease.
    """

    def __init__(
        self, name: str, config: Settings, num_steps: int, noise_levels: NoiseLevels | None
    ) -> None:
        self.name = name
        self._noise_levels = noise_levels
        self.config = {**defaults_of(name), **config}
        self.frame = KINDS[name].frame
        if self.config.get("use_flow_sigmas"):
            self.frame = "flow"
        settings = {**config, **_model_settings(name, config, self.frame, noise_levels)}
        try:
            self.scheduler: Any = _with_steps(name, settings, num_steps)
        except Exception as error:  # whatever it raises is about its settings
            if (more := _more_steps(name, settings, num_steps)) is not None:
                raise ConfigError(
                    f"{name} of diffusers cannot draw in num_steps {num_steps} with its settings; "
                    f"take num_steps {more} or more"
                ) from error
            raise refusal(name, error) from error
        self.calls = _group(self.scheduler)
        if len(self.calls) != num_steps:
            raise ConfigError(
                f"{name} of diffusers makes {len(self.calls)} steps of num_steps {num_steps} with "
                "these settings; lower num_steps"
            )
        self._check(noise_levels)

    @property
    def timesteps(self) -> Tensor:
        """The timesteps that the scheduler's network gets, one for each call."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps

    @cached_property
    def table(self) -> Float64[Tensor, " T"]:
        """The noise level of each timestep: a discrete model's own, or else the scheduler's."""
        levels = None if self._noise_levels is None else self._noise_levels.levels
        if levels is not None:
            return levels
        alpha_bar = self.scheduler.alphas_cumprod.double()
        table: Tensor = ((1 - alpha_bar) / alpha_bar).sqrt()
        return table

    @cached_property
    def model_sigmas(self) -> list[float]:
        """The noise level at which each call evaluates the model, in the unscaled frame."""
        t = self.timesteps.double().numpy()
        if self.frame == "flow":
            return [_of_flow(s) for s in t / self.config["num_train_timesteps"]]
        if self.frame == "angle":
            return [min(math.tan(math.pi / 2 * each), LARGEST) for each in t]
        table = self.table.numpy()
        return [float(s) for s in np.interp(t, np.arange(len(table)), table)]

    @cached_property
    def levels(self) -> list[float]:
        """The noise level of the state at the start of each step, in the unscaled frame."""
        firsts = [calls[0] for calls in self.calls]
        if self.frame == "angle" or not hasattr(self.scheduler, "sigmas"):
            return [self.model_sigmas[call] for call in firsts]
        sigmas = [float(self.scheduler.sigmas[call]) for call in firsts]
        return [_of_flow(s) for s in sigmas] if self.frame == "flow" else sigmas

    @property
    def space(self) -> str:
        """The space in which the scheduler wants predictions."""
        if self.frame == "angle":
            return "v"
        if "prediction_type" not in self.config:
            return "flow-v"
        return _SPACES[self.scheduler.config.prediction_type]

    @property
    def variance(self) -> bool:
        """Whether it wants the network's variance channels, too."""
        return self.name.startswith("DDPM") and str(self.scheduler.variance_type).startswith(
            "learned"
        )

    def scale(self, sigma: float) -> float:
        """What turns a state at ``sigma`` of the unscaled frame into the scheduler's."""
        return 1.0 if self.frame == "unscaled" else self.network_scale(sigma)

    def network_scale(self, sigma: float) -> float:
        """The same for what its network is given."""
        return 1 / (1 + sigma) if self.frame == "flow" else (1 + sigma**2) ** -0.5

    def network_input(self, state: State, call: int) -> State:
        """What its network is given for a state of the scheduler's."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return state
        scaled: Tensor = self.scheduler.scale_model_input(state, self.timesteps[call])
        return scaled

    def start_anew(self, index: int) -> None:
        """Let the step ``index`` begin with the state that it is given, whatever it expected."""
        if hasattr(self.scheduler, "last_sample"):
            self.scheduler.last_sample = None  # a corrector would go back to it
        orders = getattr(self.scheduler, "order_list", None)
        if orders is not None and orders[index] > 1:  # a later stage of a step begun elsewhere
            ahead = next((i for i in range(index, len(orders)) if orders[i] == 1), len(orders))
            orders[index:ahead] = range(1, ahead - index + 1)

    def rehearse(self, step_options: Settings) -> None:
        """Go through all calls once, on one pixel of which the network says 0.

        The scheduler is used up by it.

        Args:
            step_options: what ``step`` is given beside the state.

        Raises:
            ConfigError: a step is refused, or leads to what is not a number.
        """
        state = torch.ones(1, 1, 1, 1)
        output = torch.zeros(1, 2 if self.variance else 1, 1, 1)
        options = dict(step_options)
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            options["generator"] = torch.Generator().manual_seed(0)
        try:
            with quiet(), torch.no_grad():
                for call, t in enumerate(self.timesteps):
                    self.network_input(state, call)
                    state = self.scheduler.step(output, t, state, **options, return_dict=False)[0]
        except Exception as error:  # whatever it raises is about its settings
            raise refusal(self.name, error) from error
        if not bool(state.isfinite().all()):
            raise self._no_number()

    def _no_number(self) -> ConfigError:
        settings, own = self.scheduler.config, defaults_of(self.name)
        changed = [key for key, value in own.items() if settings.get(key, value) != value]
        return ConfigError(
            f"{self.name} of diffusers draws what is not a number in {len(self.calls)} steps "
            f"with its settings ({', '.join(changed) or 'the defaults'}); leave out what is "
            "not a default, or take another num_steps"
        )

    def _check(self, noise_levels: NoiseLevels | None) -> None:
        if any(math.isnan(sigma) for sigma in (*self.levels, *self.model_sigmas)):
            raise self._no_number()
        falling = all(a >= b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if not (falling and all(0 < level < math.inf for level in self.levels)):
            raise ConfigError(
                f"{self.name} of diffusers has noise levels that do not fall to 0 with these "
                f"settings: {', '.join(f'{level:.3g}' for level in self.levels[:8])}"
            )
        if noise_levels is None:
            return
        low, high = noise_levels.sigma_min * (1 - 1e-6), noise_levels.sigma_max * (1 + 1e-6)
        beyond = [sigma for sigma in self.model_sigmas if not low <= sigma <= high]
        if beyond:
            raise ConfigError(
                f"{self.name} of diffusers asks at sigma {beyond[0]:.3g}, but the model knows "
                f"{noise_levels.sigma_min:.3g} to {noise_levels.sigma_max:.3g} only; take a "
                "scheduler of its own kind"
            )


def _with_steps(name: str, settings: Settings, num_steps: int) -> Any:
    """A scheduler whose timesteps are set; what it raises is diffusers' own."""
    with quiet():
        # A copy, since a scheduler keeps its history.
        return copy.deepcopy(_build(name, json.dumps(settings, default=list), num_steps))


@lru_cache(maxsize=32)
def _build(name: str, settings: str, num_steps: int) -> Any:
    """`_with_steps` of settings as JSON; some schedulers need a second to make their tables."""
    scheduler = class_of(name)(**json.loads(settings))
    scheduler.set_timesteps(num_steps, device="cpu")  # whatever the device: no step waits for it
    return scheduler


def _more_steps(name: str, settings: Settings, num_steps: int) -> int | None:
    """The next number of steps that a scheduler takes, such as the four of Runge-Kutta."""
    for more in range(num_steps + 1, num_steps + 9):
        with suppress(Exception):
            _with_steps(name, settings, more)
            return more
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress diffusers' warnings about NumPy and its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def refusal(name: str, error: Exception) -> ConfigError:
    """An exception of a diffusers scheduler, as an error of GenLab."""
    text = " ".join(str(error).split()) or type(error).__name__
    return ConfigError(f"{name} of diffusers refuses its settings: {text}")


def _model_settings(
    name: str, config: Settings, frame: str, noise_levels: NoiseLevels | None
) -> dict[str, Any]:
    """The settings that the model decides: its betas, and what it predicts."""
    names = defaults_of(name)
    settings: dict[str, Any] = {}
    prediction = _OURS.get(str(getattr(noise_levels, "prediction", None)), "epsilon")
    if "prediction_type" in names and "prediction_type" not in config:
        settings["prediction_type"] = "flow_prediction" if frame == "flow" else prediction
    levels = None if noise_levels is None else noise_levels.levels
    if levels is None or frame not in ("chain", "unscaled"):
        return settings
    for owned in MODEL_OWNED:
        if owned in config:
            raise ConfigError(
                f"{owned} of {name} is the model's own, which has {len(levels)} timesteps; leave "
                "it out"
            )
    rescaled = float(levels[-1]) > PURE_NOISE
    if rescaled and "rescale_betas_zero_snr" in names:
        settings["rescale_betas_zero_snr"] = True
    if isinstance(noise_levels, Discrete) and (not rescaled or "rescale_betas_zero_snr" in names):
        return settings | beta_settings(noise_levels)
    alpha_bar = 1 / (1 + levels**2)
    alpha = alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return settings | {"num_train_timesteps": len(levels), "trained_betas": (1 - alpha).tolist()}


def beta_settings(model: Discrete) -> dict[str, Any]:
    """The betas of a discrete model as settings of a scheduler of diffusers.

    By name, since diffusers computes them in float32: betas made of our noise levels would be
    rounded otherwise, which shows where few levels are spaced between the smallest and the largest.
    """
    table = betas(model.schedule, model.T, model.beta_start, model.beta_end)
    start, end = model.beta_start, model.beta_end
    return {
        "num_train_timesteps": model.T,
        "beta_schedule": BETA_SCHEDULES[model.schedule],
        "beta_start": float(table[0]) if start is None else start,
        "beta_end": float(table[-1]) if end is None else end,
    }


def _group(scheduler: Any) -> list[tuple[int, ...]]:
    """Which calls make a step: those after which the scheduler has a state to begin with."""
    count = len(scheduler.timesteps)
    if hasattr(scheduler, "state_in_first_order"):
        sizes = [2] * (count // 2) + [1] * (count % 2)
    elif hasattr(scheduler, "prk_timesteps"):
        runge_kutta = len(scheduler.prk_timesteps) // 4
        sizes = [4] * runge_kutta if runge_kutta else [2]
        sizes = sizes if count >= sum(sizes) else [count]
        sizes += [1] * (count - sum(sizes))
    else:
        sizes = [1] * count
    ends = np.cumsum(sizes).tolist()
    return [tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def _of_flow(s: float) -> float:
    """The noise level of a flow's time, which runs from 0 (data) to 1 (noise)."""
    return LARGEST if s >= 1 else min(max(s / (1 - s), LEAST), LARGEST)
