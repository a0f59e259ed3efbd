"""Turn a user's options into an evaluation: a configuration, and a model ready to sample."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genlab import config as configs
from genlab.eval.config import EvalConfig
from genlab.eval.subject import Subject
from genlab.finetuning.adapters.loading import load
from genlab.generators.base import Generator
from genlab.generators.latents import check_draws_images
from genlab.runs.placing import dtype_of, place_parts


def merge_settings(
    protocol: str | None,
    overrides: Sequence[str],
    flags: Mapping[str, Any],
    own_sampler: Mapping[str, Any] | None = None,
) -> EvalConfig:
    """Put the configuration of an evaluation together.

    Args:
        protocol: a frozen protocol's name or a YAML file; None for neither.
        overrides: dotted settings, later ones win.
        flags: fields that win over all of them.
        own_sampler: the model's, below all of them: what is changed is changed in it, and the name
            of a sampler preset takes its place.

    Raises:
        ConfigError: a key, type or value is wrong.
        UnknownNameError: there is no such protocol or preset.
    """
    defaults = None if own_sampler is None else {"sampler": own_sampler}
    return replace(configs.load(EvalConfig, protocol, "eval", overrides, defaults), **flags)


def load_model(
    source: str,
    config: EvalConfig,
    device: torch.device | str,
    adapter: str | None = None,
    autoencoder: str | None = None,
) -> Generator:
    """Read a model and make it ready to be drawn from, as a configuration says.

    Args:
        source: a bundled model, a zoo model, a folder, an adapter or an official file.
        config: its ``dtype`` and ``compile`` count.
        device: where it goes.
        adapter: of the model, by its folder or name.
        autoencoder: of a latent model, by its folder or name; None keeps the model's own.

    Raises:
        GenLabError: there is no such model, or it is damaged.
        ConfigError: its samples are latents, which cannot be scored.
    """
    generator = load(source, adapter=adapter, autoencoder=autoencoder)
    check_draws_images(generator, "scores are those of images")
    generator.to(device, dtype_of(config.dtype))
    if config.compile:
        generator.compile()
    return generator


def model_subject(
    generator: Generator,
    config: EvalConfig,
    name: str,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    stitch: Sequence[str] = (),
) -> tuple[Subject, EvalConfig]:
    """A model with its sampler made, and the configuration with the whole sampler in it.

    The models that the sampler uses are moved to where the model is.

    Args:
        generator: on its device.
        config: its ``sampler`` is built, and must be whole, as `merge_settings` makes it over the
            model's own.
        name: how the leaderboard calls the model.
        steps: solver steps; None keeps them.
        guidance: scale of classifier-free guidance; None keeps it.
        stitch: small models that take the first steps; empty keeps them.

    Raises:
        ConfigError: the sampler does not fit the model.
    """
    sampler = generator.build_sampler(
        config.sampler,
        num_steps=steps,
        guidance_scale=guidance,
        stitch=stitch or None,
        over_own=False,
    )
    place_parts(sampler, generator.device, dtype_of(config.dtype), compiled=config.compile)
    config = replace(config, sampler=dict(sampler.config))
    return Subject(name=name, generator=generator, sampler=sampler), config


def model_name(source: str) -> str:
    """How the leaderboard calls a model without a given name: by its file or folder."""
    path = Path(source)
    return path.stem if path.is_file() else path.resolve().name
