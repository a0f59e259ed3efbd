"""Arguments of official constructors, checked one by one.

They come from files and from other people's configs: claims, until each value is of the right type
and within bounds that any published network keeps by far.
"""

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genlab.errors import ConfigError, nearest

Check = Callable[[Any], Any]
"""Returns the value in its own type, or raises ValueError with what is allowed."""


class MissingArgumentError(ConfigError):
    """A file does not tell something that somebody who has it can say.

    Args:
        what: the file does not tell.
        cure: how to say it where a config is given.
        setting: an example of it as ``genlab convert`` takes it.

    Attributes:
        what: as given; for callers who take no config.
        setting: as given.
    """

    def __init__(self, what: str, cure: str, setting: str) -> None:
        super().__init__(f"{what}; {cure}")
        self.what, self.setting = what, setting


def integer(low: int, high: int) -> Check:
    """A whole number between two bounds, both allowed."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number in {low} ... {high}")
        return value

    return check


def number(low: float, high: float = math.inf) -> Check:
    """A number between two bounds, both allowed."""

    def check(value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise ValueError(f"a number in {low:g} ... {high:g}")
        return float(value)

    return check


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004  # every check speaks through ValueError
    return value


def one_of(*names: str) -> Check:
    """One of some names."""

    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return str(value)

    return check


def several(each: Check, longest: int, shortest: int = 1) -> Check:
    """A list of values that each pass the same check."""

    def check(value: Any) -> list[Any]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError("a list")  # noqa: TRY004  # every check speaks through ValueError
        if not shortest <= len(value) <= longest:
            raise ValueError(f"a list of {shortest} ... {longest} values")
        try:
            return [each(item) for item in value]
        except ValueError as error:
            raise ValueError(f"a list of values, each {error}") from None

    return check


@dataclass(frozen=True)
class Option:
    """One constructor argument: its official default and what it may be."""

    default: Any
    check: Check


def values_of(cls: str, options: Mapping[str, Option], config: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each option: given, or else the default.

    Args:
        cls: the official class, for messages.
        options: its arguments.
        config: the arguments given; names that are no option are the caller's business.

    Raises:
        ConfigError: a needed value is missing, or one is not what the option allows.
    """
    values = {}
    for name, option in options.items():
        value = config.get(name, option.default)
        if value is None:
            setting = f"{name}=32"
            raise MissingArgumentError(
                f"{cls} needs {name}", f"give it in the config, for instance {setting}", setting
            )
        try:
            values[name] = option.check(value)
        except ValueError as error:
            # reprlib, because the value may be a forged nest of shared lists.
            raise ConfigError(
                f"{name} of {cls} must be {error}, got {reprlib.repr(value)}"
            ) from None
    return values


def check_claims(
    cls: str, claims: Mapping[str, str], config: Mapping[str, Any], inferred: Mapping[str, Any]
) -> None:
    """Refuse claims about a network that contradict its file.

    Args:
        cls: the official class, for messages.
        claims: its arguments that the file tells, and our names of them.
        config: the arguments given.
        inferred: what the file tells, under our names.

    Raises:
        ConfigError: names the first argument that differs.
    """
    for claim, ours in claims.items():
        if config.get(claim, inferred[ours]) != inferred[ours]:
            raise ConfigError(
                f"{claim} of {cls} is {reprlib.repr(config[claim])} in the config but "
                f"{inferred[ours]} in the file; leave it out"
            )


def refuse_unknown(title: str, arguments: Iterable[Any], allowed: Iterable[str]) -> None:
    """Refuse names that are no argument.

    Args:
        title: the official class, as the message begins.
        arguments: the names given.
        allowed: the names that there are.

    Raises:
        ConfigError: names the first unknown one and the nearest known.
    """
    names = list(allowed)
    for name in arguments:
        if name not in names:
            shown = str(name)[:40]
            raise ConfigError(f"{title} has no argument {shown!r}; {nearest(shown, names)}")
