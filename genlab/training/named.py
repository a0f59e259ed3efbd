"""The model of a training run by name (``runs/mine@sigma_rel=0.15``), to guide another one."""

import math
from pathlib import Path

from genlab.errors import ConfigError
from genlab.generators import DiffusionGenerator
from genlab.training.export import HALFLIFE, RAW, Choice, make_product
from genlab.training.run import Run

FORMS = (
    "sigma_rel=0.15, halflife or none (not averaged), kimg=200 or images=200000 for earlier, and "
    "posthoc=edm2 for EDM2's rule beside a sigma_rel"
)


def parse_name(name: str) -> tuple[Path, Choice]:
    """The folder of a run, and which of its weights are meant.

    Args:
        name: the folder, then some of ``@sigma_rel=WIDTH``, ``@halflife``, ``@none``,
            ``@kimg=THOUSANDS``, ``@images=NUMBER``, ``@posthoc=RULE``. Without an average it is the
            one by half-life, without a time the latest.

    Raises:
        ConfigError: a choice is none of these, or stands twice.
    """
    folder, *choices = name.split("@")
    while choices and not Path(folder).is_dir():  # a folder's own name may have an @
        folder = f"{folder}@{choices.pop(0)}"
    if not Run(Path(folder)).exists:
        raise ConfigError(
            f"{name!r} names no training run: there is no config.yaml in "
            f"{name.partition('@')[0]}; give the folder of a run, an @, and one of {FORMS}"
        )
    average, images, posthoc = None, None, None
    for choice in choices:
        key, _, value = choice.partition("=")
        if choice in (HALFLIFE, RAW) or key in ("sigma_rel", "gamma"):
            fits, average = average is None, choice
        elif key in ("kimg", "images"):
            fits, images = images is None, _images(name, key, value)
        elif key == "posthoc":
            fits, posthoc = posthoc is None, value
        else:
            fits = False
        if not fits:
            raise ConfigError(
                f"{name!r}: {choice!r} says nothing about the weights of a run, or says it again; "
                f"write {FORMS}"
            )
    return Path(folder), Choice.parse(average or HALFLIFE, images, posthoc)


def _images(name: str, key: str, value: str) -> int:
    try:
        count = float(value) * (1000 if key == "kimg" else 1)
    except ValueError:
        count = math.nan
    if not 0 < count < math.inf:
        raise ConfigError(f"{name!r}: {key} takes a number > 0, not {value!r}")
    return round(count)


def load_from_run(name: str) -> DiffusionGenerator:
    """The diffusion model of a run, in float32 on the CPU.

    Args:
        name: see `parse_name`.

    Raises:
        ConfigError: the name is none, or the run trains no diffusion model.
        TrainingError: the run has not stored these weights.
        CheckpointError: a stored one is damaged.
    """
    folder, choice = parse_name(name)
    product, _ = make_product(Run(folder), choice)
    if not isinstance(product, DiffusionGenerator):
        raise ConfigError(f"the run in {folder} trains no diffusion model; {name!r} cannot guide")
    return product
