"""GenLab against the official implementations, number by number."""

import pytest
from golden_cases import NotBuiltError, Run, find_cases, golden_folder
from golden_kinds import CHECKS, REASONS, check

RUNS = [run for case in find_cases(golden_folder()) for run in case.runs()]


def parameter(run: Run) -> object:
    """A run as a test; a planned one must fail for that very reason and no other."""
    marks = []
    if run.kind in REASONS:
        reason = f"{REASONS[run.kind]}: a later issue builds it"
        marks = [pytest.mark.xfail(strict=True, raises=NotBuiltError, reason=reason)]
    return pytest.param(run, id=run.id, marks=marks)


@pytest.mark.parametrize("run", [parameter(run) for run in RUNS])
def test_run(run: Run) -> None:
    check(run)


def test_cases_are_found() -> None:
    assert RUNS, f"no golden case in {golden_folder()}"


def test_kind_is_planned_or_built() -> None:
    assert not set(REASONS) & set(CHECKS), "take what is built out of PLANNED"
