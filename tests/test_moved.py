"""Old names of modules that have moved."""

import importlib
import sys

import pytest

from genlab.checkpoints.readers.dit import DiTReader
from genlab.runs import ledger


def test_old_names_give_the_same_modules() -> None:
    for old, new in {
        "genlab.checkpoints.dit": sys.modules[DiTReader.__module__],
        "genlab.generators.ledger": ledger,
    }.items():
        sys.modules.pop(old, None)
        with pytest.warns(DeprecationWarning, match=f"{old} is {new.__name__} now"):
            module = importlib.import_module(old)
        assert module is new
        assert module.__spec__ is not None
        assert module.__spec__.name == new.__name__


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"genlab\.checkpoints\.nothing"):
        importlib.import_module("genlab.checkpoints.nothing")
