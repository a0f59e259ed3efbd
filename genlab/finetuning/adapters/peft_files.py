"""Configurations that peft wrote, or claims to have written: validated before they are used."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genlab.errors import CheckpointError, ConfigError, GenLabError, printable
from genlab.finetuning.methods.base import Method
from genlab.finetuning.methods.peft_method import LEAVE_BASE, RECORDED, PeftMethod

MAX_OPTION = 1 << 16
"""The largest number in options of a kind whose shapes cannot be told before it is prepared."""

MAX_ENTRIES = 4096
"""Layers that one option names: each is compared with every module."""

MAX_REPEATS = 5
"""Parts of unknown length in one expression."""

START = "init_lora_weights"

FROM_BASE = re.compile(r"pissa|olora|pissa_niter_\d{1,2}")
"""Ways of LoRA to begin that take numbers out of the base, and can be repeated from it alone."""

_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern")
"""Options that are expressions where they are text."""

_PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
"""Options whose keys are expressions."""


def method_of(values: Mapping[str, Any], path: Path) -> PeftMethod:
    """The method that peft's configuration describes.

    Args:
        values: of the file.
        path: of the file, for messages.

    Raises:
        CheckpointError: it is none of peft's, has options that this peft does not know, or asks for
            more than an adapter may.
    """
    check_options(values, path)
    try:
        return PeftMethod.of_file(values)
    except GenLabError as error:
        raise CheckpointError(f"{path}: {printable(str(error), 600)}") from error


def check_options(values: Mapping[str, Any], path: Path) -> None:
    """Refuse options by which a file would run code, take forever, or need more than the base.

    Args:
        values: options of a method of peft, or of GenLab's LoRA.
        path: of the file, for messages.

    Raises:
        CheckpointError: names the option.
    """
    for key, value in values.items():
        if isinstance(value, list | dict) and len(value) > MAX_ENTRIES:
            raise CheckpointError(
                f"{printable(key, 60)} in {path} has {len(value):,} entries; an adapter may have "
                f"{MAX_ENTRIES:,}"
            )
    if values.get("megatron_config"):
        raise CheckpointError(
            f"{path} lets peft import a module (megatron_config), which GenLab does not do"
        )
    for key, pattern in _expressions(values):
        check_expression(pattern, f"{key} in {path}")
    start = str(values.get(START, True))
    if start not in LEAVE_BASE and not FROM_BASE.fullmatch(start):
        raise CheckpointError(
            f"{path}: LoRA began by '{printable(start, 40)}', which changes the base by more than "
            "the adapter holds; convert it with peft (save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )


def _expressions(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in _PATTERNS:
        if isinstance(values.get(key), str):
            yield key, values[key]
    for key in _PATTERN_KEYS:
        if isinstance(values.get(key), Mapping):
            yield from ((key, str(pattern)) for pattern in values[key])


def check_expression(pattern: str, where: str) -> None:
    """Refuse a regular expression that could take forever on a short name.

    Those do that repeat a group, refer to one, or have many parts of unknown length.

    Raises:
        CheckpointError: it is one.
    """
    plain = re.sub(r"\\[^0-9]", "", pattern)  # escaped characters mean themselves
    repeats = len(re.findall(r"[*+{]", plain))
    if repeats > MAX_REPEATS or re.search(r"\)[*+{]|\\[0-9]|\(\?P=", plain):
        raise CheckpointError(
            f"{where} is the expression '{printable(pattern, 60)}', which could take forever to "
            "compare; write the paths of the layers as a list"
        )


def without_start(method: Method) -> Method:
    """The same method for checks of shapes: its initialisation does not read the base."""
    if isinstance(method, PeftMethod) and START in method.config:
        return replace(method, config={**method.config, START: True})
    return method


def check_bounded(method: Mapping[str, Any]) -> None:
    """Refuse options that could ask for any amount of memory.

    Raises:
        ConfigError: a number is larger than `MAX_OPTION`.
    """

    def numbers(value: Any) -> Iterator[float]:
        if isinstance(value, int | float):
            yield value
        elif isinstance(value, Mapping):
            for inner in value.values():
                yield from numbers(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from numbers(inner)

    if any(abs(number) > MAX_OPTION for number in numbers(method)):
        raise ConfigError(f"an option of its method is larger than {MAX_OPTION:,}")


def check_agrees(method: Method, network: Any, theirs: Mapping[str, Any] | None) -> None:
    """Refuse an adapter whose two files describe different ones: peft reads only its own.

    Args:
        method: that GenLab's file names.
        network: prepared by it.
        theirs: peft's file, where there is one beside GenLab's.

    Raises:
        CheckpointError: names the first option that differs.
    """
    if theirs is None:
        return
    ours = method.adapter_config(network, None)
    if ours is None:
        raise CheckpointError("it has the files of peft, and a method that is none of peft's")
    for key in ours.keys() & theirs.keys() - RECORDED - {START}:
        if _comparable(ours[key]) != _comparable(theirs[key]):
            raise CheckpointError(
                f"its two files differ: {key} is {printable(repr(theirs[key]), 60)} for peft and "
                f"{printable(repr(ours[key]), 60)} for GenLab; fetch it again"
            )


def _comparable(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list) else value
