"""Choices that configurations, options and checks share, each listed here once."""

from enum import Enum

from genlab.errors import ConfigError


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


def check_dtype(dtype: str) -> None:
    """Refuse a name that is not in `DTYPES`."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
