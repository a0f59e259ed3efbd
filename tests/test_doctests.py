"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def modules() -> list[str]:
    """All modules, found on the disk, so that collecting imports none of them."""
    names = []
    for folder in ("genlab", "samplers", "eval"):
        package = folder if folder == "genlab" else f"genlab.{folder}"
        for path in (CHECKOUT / folder).rglob("*.py"):
            parts = path.relative_to(CHECKOUT / folder).with_suffix("").parts
            names.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return sorted(name for name in names if not name.endswith("__main__"))


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_examples_are_found() -> None:
    """Guards against a walk that finds nothing."""
    assert "genlab.samplers.base" in modules()
    assert doctest.testmod(importlib.import_module("genlab.errors")).attempted > 0
