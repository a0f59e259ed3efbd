"""A recommendation as a YAML file for ``genlab train``, with the reasons as comments."""

from collections.abc import Mapping
from typing import Any

from genlab import yaml_text
from genlab.errors import printable
from genlab.training.recommend.recommendation import Recommendation

COLUMN = 44
"""Where comments begin, beside settings that leave room."""

WIDTH = 130
"""Columns of a line; a comment that would pass it stands above its setting."""


def recipe_text(recipe: Recommendation, command: str) -> str:
    """The file's text.

    Args:
        recipe: what is recommended.
        command: that trains by the file, for the comment at its top.
    """
    channels, height, width = recipe.image_shape
    colour = "grey" if channels == 1 else "RGB"
    head = [
        f"Recommended by 'genlab presets recommend' for {recipe.num_images:,} images, {width}x"
        f"{height} {colour}.",
        "",
        f"  {printable(command)}",
        "",
        *recipe.expect,
    ]
    comments = [f"# {line}".rstrip() for text in head for line in _wrapped(text)]
    return "\n".join([*comments, *_lines(recipe.settings, recipe.reasons)]) + "\n"


def _wrapped(text: str, width: int = 98) -> list[str]:
    """Lines of a comment; a command stays on one, to be copied."""
    import textwrap

    return [text] if text.startswith("  ") else textwrap.wrap(text, width) or [""]


def _lines(settings: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    lines = []
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            lines += _line(f"{key}: {yaml_text.one_line(value)}", reasons.get(key, ""))
            continue
        lines += _line(f"{key}:", reasons.get(key, ""))
        for inner, setting in value.items():
            written = f"  {inner}: {yaml_text.one_line(setting)}"
            lines += _line(written, reasons.get(f"{key}.{inner}", ""))
    return lines


def _line(setting: str, reason: str) -> list[str]:
    if not reason:
        return [setting]
    beside = f"{setting:<{COLUMN - 2}}  # {reason}"
    if len(beside) <= WIDTH:
        return [beside]
    indent = " " * (len(setting) - len(setting.lstrip()))
    return [f"{indent}# {reason}", setting]
