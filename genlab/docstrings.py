"""Parse docstrings for commands that show them: prose, options and source of a class."""

import inspect
import re
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Docstring:
    """A docstring in Google style, taken apart; lines are joined.

    Attributes:
        summary: its first paragraph.
        text: the paragraphs after it, without those below.
        attributes: name -> meaning, of its "Attributes" section.
        source: what stands behind "Source:".
    """

    summary: str = ""
    text: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    source: str = ""


def parse(docstring: str | None) -> Docstring:
    """Take a docstring apart.

    >>> parse(Docstring.__doc__).attributes["summary"]
    'its first paragraph.'
    """
    summary, *paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    text: list[str] = []
    attributes: dict[str, str] = {}
    source = ""
    for paragraph in paragraphs:
        if paragraph.startswith("Attributes:\n"):
            attributes |= _attributes(paragraph)
        elif paragraph.startswith("Source:"):
            source = _join(paragraph.removeprefix("Source:"))
        else:
            text.append(_join(paragraph))
    return Docstring(summary=_join(summary), text=tuple(text), attributes=attributes, source=source)


def meaning(cls: type, attribute: str) -> str:
    """The description of an attribute in the docstring of a class or of its nearest base."""
    for each in cls.__mro__:
        attributes = parse(each.__dict__.get("__doc__")).attributes
        if attribute in attributes:
            return attributes[attribute]
    return ""


def describe(value: Any) -> Docstring:
    """The docstring of an object's own, not of its bases."""
    return parse(vars(value).get("__doc__") if isinstance(value, type) else value.__doc__)


def _attributes(section: str) -> dict[str, str]:
    descriptions: dict[str, str] = {}
    lines = inspect.cleandoc(section.partition("\n")[2]).split("\n")
    for line in lines:
        start = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if start:
            name = start[1]
            descriptions[name] = start[2]
        elif descriptions:
            descriptions[name] += f" {line.strip()}"
    return descriptions


def _join(paragraph: str) -> str:
    return " ".join(paragraph.split())
