"""The annealing schedule of CADS: the share of the condition at a step, also for weights."""

from genlab.diffusion.noise_levels import NoiseLevels
from genlab.errors import ConfigError, nearest

TIMES = ("step", "model")
"""Times that a schedule can run over: the share of steps ahead, or the model's own time."""


def cads_gamma(time: float, tau1: float, tau2: float) -> float:
    """The share of the condition that is left at a time: from 0 in pure noise to 1 near the data.

    Args:
        time: 1 = pure noise, 0 = data.
        tau1: the condition is whole from here on down, 0 <= tau1 <= tau2.
        tau2: nothing is left of it from here on up, tau2 <= 1.

    Source: CADS (Sadat et al., arXiv:2310.17347), its piecewise linear schedule.

    >>> [round(cads_gamma(1 - i / 10, 0.6, 0.9), 3) for i in range(6)]
    [0.0, 0.0, 0.333, 0.667, 1.0, 1.0]
    """
    if time <= tau1:
        return 1.0
    if time >= tau2:
        return 0.0
    return (tau2 - time) / (tau2 - tau1)


def clock(level: float, index: int, num_steps: int, noise_levels: NoiseLevels, time: str) -> float:
    """The time of a step in [0, 1], by one of `TIMES`: that of its level, before churn.

    By steps the first one is at 1 and the last one at ``1 / num_steps``.
    """
    return 1 - index / num_steps if time == "step" else noise_levels.time_of(level)


def check_schedule(title: str, tau1: float, tau2: float, time: str) -> None:
    """Refuse settings that make no schedule.

    Args:
        title: whose settings they are, for messages.
        tau1: see `cads_gamma`.
        tau2: see `cads_gamma`.
        time: one of `TIMES`.

    Raises:
        ConfigError: they are out of range or in the wrong order, or there is no such clock.
    """
    if not 0 <= tau1 <= tau2 <= 1:
        raise ConfigError(
            f"{title} needs 0 <= tau1 <= tau2 <= 1 (time 1 is noise: the class is whole below tau1 "
            f"and gone above tau2), got tau1 = {tau1:g} and tau2 = {tau2:g}"
        )
    if time not in TIMES:
        raise ConfigError(f"{title} knows no time {time!r}; {nearest(time, TIMES)}")
