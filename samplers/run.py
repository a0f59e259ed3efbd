"""From a sampler config to a run: the one way in which generators, pipelines and tests sample."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from genlab import compute
from genlab.diffusion.condition import Condition
from genlab.diffusion.denoiser import Denoiser
from genlab.diffusion.noise import Noise
from genlab.errors import ConfigError, nearest
from genlab.registry import Registry
from genlab.samplers.base import (
    GUIDANCE,
    SCHEDULES,
    SOLVERS,
    RangeAware,
    SamplerStack,
    Schedule,
    SolverStep,
    StartAware,
)


@dataclass(kw_only=True)
class SamplerConfig:
    """How to sample from a diffusion model: the schema of ``sampler`` in every config.

    Attributes:
        solver: ``name`` in `SOLVERS` and the options of that solver.
        schedule: ``name`` in `SCHEDULES` and the options of that schedule.
        guidance: one mapping for each guidance, innermost first: ``name`` in `GUIDANCE` and its
            options.
    """

    solver: dict[str, Any] = field(default_factory=lambda: {"name": "heun"})
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "karras", "num_steps": 18})
    guidance: list[dict[str, Any]] = field(default_factory=list)


def build(config: SamplerConfig | Mapping[str, Any]) -> SamplerStack:
    """Make solver, schedule and guidance from a config; what is missing takes its default.

    Raises:
        ConfigError: a key or an option is unknown, out of range or of the wrong type.
        UnknownNameError: nothing is registered under a name.
    """
    whole = merge(SamplerConfig(), asdict(config) if isinstance(config, SamplerConfig) else config)
    return SamplerStack(
        solver=_build(SOLVERS, whole["solver"]),
        schedule=_build(SCHEDULES, whole["schedule"]),
        guidance=tuple(_build(GUIDANCE, entry) for entry in whole["guidance"]),
    )


def merge(
    base: SamplerConfig | Mapping[str, Any], override: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A sampler config with some of its entries replaced.

    Args:
        base: a config, perhaps partial.
        override: what to change. Options of ``solver`` and ``schedule`` are merged one by one while
            their ``name`` stays; another name starts afresh, because the options of one solver mean
            nothing to another. A ``guidance`` list, or one guidance with its name, replaces the
            list; a mapping ``{position: options}`` changes single entries.

    Returns:
        A new plain mapping with the keys of `SamplerConfig` that either holds.
    """
    merged = _copy(asdict(base) if isinstance(base, SamplerConfig) else base)
    for key, value in _copy(override or {}).items():
        if key == "guidance":
            merged[key] = _merge_guidance(merged.get(key, []), value)
        else:
            merged[key] = _merge_entry(merged.get(key, {}), value, f"sampler.{key}")
    return merged


def noise_levels(schedule: Schedule, denoiser: Denoiser) -> Float64[Tensor, " levels"]:
    """The noise levels of a run as the model knows them: decreasing, with a final 0, on the CPU."""
    sigmas = schedule(denoiser)
    return torch.cat([denoiser.round_sigma(sigmas[:-1]), sigmas[-1:]])


def sample_steps(
    stack: SamplerStack,
    denoiser: Denoiser,
    *,
    noise: Noise,
    condition: Condition,
    image_shape: Sequence[int],
    device: torch.device | str,
    latents: Float[Tensor, "B C H W"] | None = None,
) -> Iterator[SolverStep]:
    """Sample one batch, step by step; the last step holds the images.

    Switching gradients off is the caller's business.

    Args:
        stack: what `build` made.
        denoiser: the model, not yet guided.
        noise: one stream for each image; the latents are its first draw, in float32.
        condition: of the whole batch.
        image_shape: (C, H, W).
        device: where to compute. The state is float64 there, float32 on a device that lacks it.
        latents: standard normal start, in place of drawing it.

    Raises:
        ConfigError: the model refuses the guidance or the schedule, or ``latents`` has another
            shape.
    """
    guided = denoiser
    for wrap in stack.guidance:
        guided = wrap(guided)
    sigmas = noise_levels(stack.schedule, guided)
    solver = stack.solver
    if isinstance(solver, RangeAware):
        solver = solver.with_range(*stack.schedule.sigma_range(guided))
    if latents is None:
        latents = noise.randn(tuple(image_shape))
    elif tuple(latents.shape[1:]) != tuple(image_shape):
        raise ConfigError(
            f"latents must be images of shape {tuple(image_shape)}, got {tuple(latents.shape[1:])}"
        )
    # Cast before the move would not do: Metal has no float64 at all, others multiply in it.
    start = float(sigmas[0])
    if isinstance(solver, StartAware):
        start = solver.start_std(start)
    x = latents.to(device).to(compute.widest(device)) * start
    return solver(guided, x, sigmas, condition, noise)


def _build(registry: Registry[Any], entry: Mapping[str, Any]) -> Any:
    options = dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"a {registry.kind} needs a name, one of {', '.join(registry)}; got {dict(entry)}"
        )
    return registry.build(name, **options)


def _copy(config: Mapping[Any, Any]) -> dict[str, Any]:
    known = [f.name for f in fields(SamplerConfig)]
    for key in config:
        if key not in known:
            raise ConfigError(f"a sampler config has no key {key!r}; {nearest(str(key), known)}")
    return {
        key: [dict(_mapping(entry, "sampler.guidance")) for entry in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else dict(_mapping(value, f"sampler.{key}"))
        for key, value in config.items()
    }


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a name or a mapping with a name, got {value!r}")
    return value


def _merge_entry(base: dict[str, Any], override: Any, where: str) -> dict[str, Any]:
    if not isinstance(override, dict):
        raise ConfigError(f"{where} must be one mapping with a name, got {override!r}")
    if override.get("name", base.get("name")) != base.get("name"):
        return override
    return {**base, **override}


def _merge_guidance(base: Any, override: Any) -> list[dict[str, Any]]:
    if isinstance(override, list):
        return override
    if "name" in override:
        return [override]
    entries = list(base)
    for position, options in override.items():
        if not str(position).isdigit() or int(position) >= len(entries):
            raise ConfigError(
                f"sampler.guidance has {len(entries)} entries, so there is none at {position!r}; "
                "give a list to add one"
            )
        where = f"sampler.guidance.{position}"
        entries[int(position)] = _merge_entry(
            entries[int(position)], dict(_mapping(options, where)), where
        )
    return entries
