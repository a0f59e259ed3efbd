"""The sampler of a generator: its own, a preset, or a few changed settings."""

from collections.abc import Mapping
from typing import Any

from genlab import config
from genlab.errors import ConfigError
from genlab.generators.base import SamplerLike
from genlab.samplers.run import SamplerConfig, build, merge


def sampler_layers(
    sampler: SamplerLike, own: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    """What `genlab.config.fill` makes a sampler of: a preset alone, or changes over a model's own.

    Args:
        sampler: a preset's name, a mapping, or None.
        own: the model's own sampler.

    Raises:
        UnknownNameError: there is no such preset.
    """
    if isinstance(sampler, str):
        return [(f"the sampler preset {sampler!r}", config.read_preset("sampler", sampler))]
    return [("the model's own sampler", own), ("the sampler", sampler or {})]


def resolve_sampler(
    sampler: SamplerLike, default: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The whole sampler config of a diffusion model that ``sampler`` stands for.

    Args:
        sampler: a preset's name, which stands alone; a mapping, which is merged over ``default``;
            or None.
        default: the generator's own sampler; what it leaves out too is EDM's (Heun, Karras, 18
            steps).

    Raises:
        ConfigError: a key, an option or a value is wrong.
        UnknownNameError: there is no such preset, solver, schedule or guidance.
    """
    if isinstance(sampler, str):
        whole = merge(SamplerConfig(), config.read_preset("sampler", sampler))
    else:
        whole = merge(merge(SamplerConfig(), default), sampler)
    build(whole)  # every setting is checked now rather than after the model is loaded
    return whole


def adjust_sampler(
    sampler: Mapping[str, Any], num_steps: int | None = None, guidance_scale: float | None = None
) -> dict[str, Any]:
    """The two settings that people change most, by their short names.

    Args:
        sampler: a whole sampler config.
        num_steps: solver steps; None keeps them.
        guidance_scale: of classifier-free guidance; 1.0 switches it off, None keeps it.

    >>> adjust_sampler(resolve_sampler(None), num_steps=40, guidance_scale=2.0)["guidance"]
    [{'name': 'cfg', 'scale': 2.0}]
    """
    changed = merge(sampler, None)
    if num_steps is not None:
        if num_steps < 1:
            raise ConfigError(f"the number of steps must be at least 1, got {num_steps}")
        changed["schedule"]["num_steps"] = num_steps
    if guidance_scale is not None:
        changed["guidance"] = _rescale(changed["guidance"], guidance_scale)
    return changed


def describe_sampler(sampler: Mapping[str, Any]) -> str:
    """A whole sampler config in a few words.

    >>> describe_sampler(adjust_sampler(resolve_sampler(None), guidance_scale=2.0))
    'heun, 18 steps, cfg 2.0'
    """
    solver, schedule = sampler["solver"]["name"], sampler["schedule"]
    steps = [f"{schedule['num_steps']} steps"] if "num_steps" in schedule else [schedule["name"]]
    guidance = [f"{g['name']} {g.get('scale', '')}".rstrip() for g in sampler["guidance"]]
    return ", ".join([solver, *steps, *guidance])


def _rescale(guidance: list[dict[str, Any]], scale: float) -> list[dict[str, Any]]:
    if scale == 1:
        return [entry for entry in guidance if entry["name"] != "cfg"]
    if any(entry["name"] == "cfg" for entry in guidance):
        return [
            {**entry, "scale": scale} if entry["name"] == "cfg" else entry for entry in guidance
        ]
    return [*guidance, {"name": "cfg", "scale": scale}]
