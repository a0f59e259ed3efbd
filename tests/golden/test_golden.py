"""GenLab against the official implementations, number by number."""

import pytest
from golden_cases import NotBuiltError, Run, find_cases, golden_folders, unique_ids
from golden_kinds import CHECKS, REASONS, check, planned
from golden_solvers import not_reproduced

try:
    FOLDERS = golden_folders()
except NotADirectoryError as error:
    raise pytest.Collector.CollectError(str(error)) from None  # said without a traceback
RUNS = [run for case in find_cases(*FOLDERS) for run in case.runs()]


def parameter(run: Run, name: str) -> object:
    """A run as a test; a planned one must fail for that very reason and no other."""
    marks = []
    if reason := not_reproduced(run):
        marks = [pytest.mark.skip(reason=f"left out on purpose: {reason}")]
    elif what := planned(run):
        reason = f"{what}: a later issue builds it"
        marks = [pytest.mark.xfail(strict=True, raises=NotBuiltError, reason=reason)]
    return pytest.param(run, id=name, marks=marks)


@pytest.mark.parametrize("run", [*map(parameter, RUNS, unique_ids(RUNS))])
def test_run(run: Run) -> None:
    check(run)


def test_cases_are_found() -> None:
    assert RUNS, f"no golden case in {', '.join(map(str, FOLDERS))}"


def test_kind_is_planned_or_built() -> None:
    assert not set(REASONS) & set(CHECKS), "take what is built out of PLANNED"
