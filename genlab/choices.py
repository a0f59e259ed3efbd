"""Choices that configurations, options and checks share, each listed here once."""

from collections.abc import Sequence
from enum import Enum

from genlab.errors import ConfigError, nearest


class Fit(Enum):
    """What to do with images of another size; see `genlab.data.conform.Conform`."""

    none = "none"
    pad = "pad"
    crop = "crop"
    resize = "resize"


class Alpha(Enum):
    """What lies behind transparent images; see `genlab.data.conform.Conform`."""

    refuse = "refuse"
    black = "black"
    white = "white"


FITS = tuple(fit.value for fit in Fit)
ALPHAS = tuple(alpha.value for alpha in Alpha)
DTYPES = ("float32", "bfloat16", "float16")
"""What networks compute in."""


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ConfigError: names the argument, its value and the choices.
    """
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_option(owner: str, option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is no option of ``owner`` (``the heun solver``); names the nearest."""
    if value not in choices:
        raise ConfigError(f"{owner} has no {option} {value!r}; {nearest(value, choices)}")


def check_least(config: object, **least: int) -> None:
    """Refuse numbers below their least value, each an attribute of ``config``; None is allowed."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and not value >= bound:
            raise ConfigError(f"{name} must be at least {bound}, got {value}")
