"""Check a file's claims about its network against its tensors, before anything is built.

A config.json of two lines can ask for a billion layers. Numbers in it are bounded, the network is
made without memory and with no more parts than the file's tensors can fill, and names and shapes
are compared; only then is memory taken, no more than the file has.
"""

import math
import reprlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from genlab.errors import CheckpointError, GenLabError, printable, reason

LARGEST = 1_000_000
"""A whole number in a network's config; only counts of classes come near it."""
MOST_NUMBERS = 1_024
"""Numbers in one list of a network's config."""
PARTS_PER_TENSOR = 20
"""Modules and tensors that a network may register for each tensor of its file; ours need 5."""

N = TypeVar("N", bound=nn.Module)


class _TooManyPartsError(CheckpointError):
    """The network goes on growing after its file's tensors would be used up."""


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config whose numbers no network has.

    Args:
        config: what a config.json holds, of any depth.
        where: the file, as messages begin.

    Raises:
        CheckpointError: names the entry and its value.
    """
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending += value.items()
        elif isinstance(value, list):
            if len(value) > MOST_NUMBERS and not all(isinstance(item, str) for item in value):
                raise CheckpointError(
                    f"{where} claims {printable(name, 60)} of {len(value):,} values, more than any "
                    "network has; fetch or save the model again"
                )
            pending += [(name, item) for item in value]
        elif isinstance(value, int | float) and not _is_plausible(value):
            raise CheckpointError(
                f"{where} claims {printable(name, 60)} = {reprlib.repr(value)}, more than any "
                "network has; fetch or save the model again"
            )


def _is_plausible(value: float) -> bool:
    return abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value)


def build_empty(make: Callable[[], N], num_tensors: int, where: str) -> N:
    """Make a network without memory, and with no more parts than a file's tensors can fill.

    Args:
        make: builds it.
        num_tensors: how many the file has.
        where: file and network, as messages begin.

    Raises:
        CheckpointError: it cannot be built, or has more parts.
    """
    most = PARTS_PER_TENSOR * (num_tensors + 10)
    try:
        with torch.device("meta"), warnings.catch_warnings(), _counting_parts(most, where):
            warnings.simplefilter("ignore")  # of layers without numbers, whose shapes will not fit
            return make()
    except _TooManyPartsError:
        raise
    except Exception as error:
        # The same sentence for settings that a network refuses and for what trips over them.
        why = str(error) if isinstance(error, GenLabError) else reason(error)
        raise CheckpointError(
            f"{where} cannot be built: {why}; check the config against the file"
        ) from error


@contextmanager
def _counting_parts(most: int, where: str) -> Iterator[None]:
    made, thread = 0, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal made
        made += thread == threading.get_ident()
        if made > most:
            raise _TooManyPartsError(
                f"{where} does not fit: its config claims more layers than the file has tensors "
                "for; check the config against the file"
            )

    hooks = [
        register(count)
        for register in (
            registration.register_module_module_registration_hook,
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_state_dict(expected: Mapping[str, Tensor], actual: Mapping[str, Any], where: str) -> None:
    """Compare names and shapes.

    Args:
        expected: the network's own state dict (meta tensors will do).
        actual: what the file holds: tensors, or anything with a ``shape``.
        where: file and network, as the error message begins.

    Raises:
        CheckpointError: names what is missing, unexpected or of another shape, in one sentence.
    """
    missing = [name for name in expected if name not in actual]
    unexpected = [name for name in actual if name not in expected]
    shapes = [
        f"{printable(name, 80)} is {list(actual[name].shape)} where {list(value.shape)} is needed"
        for name, value in expected.items()
        if name in actual and tuple(actual[name].shape) != tuple(value.shape)
    ]
    faults = [
        *(["missing: " + listed(missing)] if missing else []),
        *(["unexpected: " + listed(unexpected)] if unexpected else []),
        *([listed(shapes, most=200)] if shapes else []),
    ]
    if faults:
        raise CheckpointError(
            f"{where} does not fit: {'; '.join(faults)}; check the config against the file"
        )


def listed(names: list[Any], shown: int = 3, most: int = 80) -> str:
    """The first of some names out of a file, each printable, and how many more there are."""
    rest = len(names) - shown
    some = ", ".join(printable(name, most) for name in names[:shown])
    return some + (f" and {rest} more" if rest > 0 else "")
