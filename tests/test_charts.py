"""Charts: files that hold what they were given, and one sentence where matplotlib is missing."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from genlab import charts
from genlab.charts import Line, Panel
from genlab.errors import ConfigError, OutputError

FIRST = Line(
    label="first", x=[5, 9, 40], y=[3.0, 2.0, 1.0], low=[2.9, None, 0.8], high=[3.1, None, 1.2],
    marked=[2],
)  # fmt: skip
SECOND = Line(label="second", x=[5, 9], y=[2.5, 2.4])
PANEL = Panel(
    lines=[FIRST, SECOND], x_label="evaluations", y_label="distance", mark_label="best",
    front=[(5, 2.5), (40, 2.5), (40, 1.0)], log_x=True,
)  # fmt: skip


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_chart_is_drawn_in_both_formats(tmp_path: Path) -> None:
    paths = charts.draw([PANEL], tmp_path / "one", title="tiny", note="40 images")
    assert [path.name for path in paths] == ["one.png", "one.svg"]
    assert size_of(paths[0])[0] > 900
    svg = paths[1].read_text()
    for text in ("tiny", "40 images", "first", "second", "best", "Pareto front", "evaluations"):
        assert f">{text}<" in svg


def test_equal_data_gives_equal_bytes(tmp_path: Path) -> None:
    once = charts.draw([PANEL], tmp_path / "a")
    again = charts.draw([PANEL], tmp_path / "b")
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]


def test_panels_share_one_legend(tmp_path: Path) -> None:
    panels = [replace(PANEL, title=f"panel {i}") for i in range(3)]
    (path,) = charts.draw(panels, tmp_path / "three", columns=2, formats=["svg"])
    svg = path.read_text()
    assert svg.count(">second<") == 1
    assert all(f">panel {i}<" in svg for i in range(3))


def test_places_with_names_and_bands(tmp_path: Path) -> None:
    line = replace(FIRST, x=[0, 1, 2], band=True)
    panel = Panel(lines=[line], x_names=["euler", "heun", "unipc"])
    (path,) = charts.draw([panel], tmp_path / "named", formats=["svg"])
    assert ">unipc<" in path.read_text()


def test_many_long_labels_stand_below(tmp_path: Path) -> None:
    lines = [replace(SECOND, label=f"a guidance with a long name, number {i}") for i in range(9)]
    (path,) = charts.draw([Panel(lines=lines)], tmp_path / "many", formats=["png"])
    (few,) = charts.draw([PANEL], tmp_path / "few", formats=["png"])
    assert size_of(path)[0] < 1150  # beside the chart they would make it wider
    assert size_of(path)[1] > size_of(few)[1]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'genlab\[plots\]'"):
        charts.draw([PANEL], tmp_path / "none")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        charts.draw([PANEL], tmp_path / "file" / "chart")
