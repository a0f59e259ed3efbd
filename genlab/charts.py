"""Charts of measured curves: data in, picture files out; one style for all of them.

matplotlib draws them and is an extra (``pip install 'genlab[plots]'``), so it is imported only when
a chart is drawn.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from genlab.errors import ConfigError
from genlab.files import atomic_path

FORMATS = ("png", "svg")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by colour-blind eyes (Okabe and Ito 2008, without its yellow); markers differ, too."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", ":", "-.")
"""Of the first, second, ... turn through the colours."""

WIDTH = 7.0
"""Inches of a chart with one panel; at `DPI`, 1050 pixels, which read well at 700."""

HEIGHT = 3.9
LEGEND_ROW = 0.24
"""Inches of a row of the legend below the panels."""

LETTERS = 76
"""Letters of legend entries that have room side by side below one panel."""

DPI = 150
LEGEND_COLUMN = 26
"""Letters of a legend entry beyond which the legend stands below the chart."""

_FRONT = "Pareto front"

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "genlab",  # the same data gives the same bytes
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve.

    Attributes:
        label: in the legend; empty for none.
        x: where its points lie, in the order in which they are joined.
        y: their values, as many.
        low: lower ends of their intervals, None where a point has none; None for no intervals.
        high: upper ends.
        band: whether intervals are a band around the curve rather than bars on its points.
        marked: numbers of the points that get a ring.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    band: bool = False
    marked: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes with its curves.

    Attributes:
        lines: the curves; those of one label have one look in every panel of a chart.
        title: above the axes.
        x_label: with its unit.
        y_label: with its unit.
        front: (x, y) of the corners of a Pareto front.
        mark_label: what the rings mean, for the legend; empty for nothing.
        x_names: names of the places 0, 1, 2, ... on the x axis, where x is no number.
        log_x: whether the x axis is logarithmic.
    """

    lines: Sequence[Line]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    front: Sequence[tuple[float, float]] = ()
    mark_label: str = ""
    x_names: Sequence[str] = ()
    log_x: bool = False


def require_matplotlib() -> None:
    """Find out before long work whether charts can be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise ConfigError(
            "charts need matplotlib, which is not installed; pip install 'genlab[plots]'"
        ) from error


@contextmanager
def style() -> Iterator[None]:
    """The look of every chart, for those that draw on a figure of their own.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context

    with rc_context(_STYLE):  # type: ignore[arg-type]  # names of settings are literals there
        yield


def save(figure: Any, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure in every format, each file whole or not at all.

    Args:
        figure: of matplotlib, made inside `style`.
        stem: the files' path without its ending.
        formats: endings that matplotlib knows.

    Returns:
        The files.

    Raises:
        OutputError: the folder cannot be written.
    """
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in formats]
    for path, ending in zip(paths, formats, strict=True):
        metadata = {"Date": None} if ending == "svg" else None
        with atomic_path(path) as temporary:
            figure.savefig(
                temporary, format=ending, dpi=DPI, bbox_inches="tight", metadata=metadata
            )
    return paths


def draw(
    panels: Sequence[Panel],
    stem: Path,
    *,
    title: str = "",
    note: str = "",
    columns: int = 1,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw panels side by side, with one legend outside of all of them.

    Args:
        panels: at least one.
        stem: the files' path without its ending.
        title: above all panels.
        note: small, below them.
        columns: panels in a row.
        formats: see `save`.

    Returns:
        The files.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    with style():
        from matplotlib.figure import Figure

        columns = min(columns, len(panels))
        rows = math.ceil(len(panels) / columns)
        wide, high = (1.0, 1.0) if columns == 1 else (0.62, 0.82)
        below = _legend_rows(panels)
        figure = Figure(
            figsize=(WIDTH * wide * columns, HEIGHT * high * rows + LEGEND_ROW * below),
            layout="constrained",
        )
        looks = _looks(panels)
        axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
        for panel, place in zip(panels, axes, strict=False):
            _draw_panel(place, panel, looks)
        for place in axes[len(panels) :]:
            place.set_axis_off()
        if title:
            figure.suptitle(title, fontsize=11.5, fontweight="bold")
        _legend(figure, axes[: len(panels)], panels, note)
        return save(figure, stem, formats)


def _looks(panels: Sequence[Panel]) -> dict[str, dict[str, Any]]:
    """Label -> colour, marker and dashes."""
    labels = dict.fromkeys(line.label for panel in panels for line in panel.lines)
    return {
        label: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
        }
        for number, label in enumerate(labels)
    }


def _draw_panel(axes: Any, panel: Panel, looks: dict[str, dict[str, Any]]) -> None:
    for line in panel.lines:
        _draw_line(axes, line, looks[line.label])
    _draw_rings(axes, panel)
    if len(panel.front) > 1:
        x, y = zip(*panel.front, strict=True)
        axes.plot(
            x, y, color="#888888", linestyle=(0, (1, 1.5)), linewidth=1.4,
            zorder=1, label=_FRONT,
        )  # fmt: skip
    if panel.log_x:
        _log_ticks(axes, panel)
    if panel.x_names:
        axes.set_xticks(range(len(panel.x_names)), panel.x_names)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.margins(x=0.06, y=0.1)


def _draw_line(axes: Any, line: Line, look: dict[str, Any]) -> None:
    axes.plot(
        line.x, line.y, **look, markeredgecolor="white", markeredgewidth=0.8,
        label=line.label or "_nolegend_", zorder=3,
    )  # fmt: skip
    intervals = [
        (x, y, low, high)
        for x, y, low, high in zip(line.x, line.y, line.low or (), line.high or (), strict=False)
        if low is not None and high is not None
    ]
    if intervals:
        x, y, lows, highs = zip(*intervals, strict=True)
        if line.band:
            axes.fill_between(x, lows, highs, color=look["color"], alpha=0.18, linewidth=0)
        else:
            below = [value - low for value, low in zip(y, lows, strict=True)]
            above = [high - value for value, high in zip(y, highs, strict=True)]
            axes.errorbar(
                x, y, yerr=(below, above), fmt="none", ecolor=look["color"], elinewidth=1.3,
                capsize=3, zorder=2,
            )  # fmt: skip


def _draw_rings(axes: Any, panel: Panel) -> None:
    rings = [(line.x[i], line.y[i]) for line in panel.lines for i in line.marked]
    if rings:
        x, y = zip(*rings, strict=True)
        axes.scatter(
            x, y, s=110, facecolors="none", edgecolors="#222222", linewidths=1.3, zorder=4,
            label=panel.mark_label or "_nolegend_",
        )  # fmt: skip


def _log_ticks(axes: Any, panel: Panel) -> None:
    """A logarithmic axis whose ticks are the very places where points lie, if they are few."""
    axes.set_xscale("log")
    places = sorted({x for line in panel.lines for x in line.x})
    kept: list[float] = []
    span = math.log(places[-1] / places[0]) or 1.0
    for place in places:
        if not kept or math.log(place / kept[-1]) > 0.07 * span:
            kept.append(place)
    axes.set_xticks(kept, [f"{place:.4g}" for place in kept])
    axes.minorticks_off()


def _legend(figure: Any, axes: Sequence[Any], panels: Sequence[Panel], note: str) -> None:
    """One entry for each label, right of the panel where there is room, else below."""
    entries: dict[str, Any] = {}
    for each in axes:
        handles, labels = each.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    for last in [*(panel.mark_label for panel in panels), _FRONT]:
        if last in entries:
            entries[last] = entries.pop(last)
    if not _legend_rows(panels):
        if entries:
            figure.legend(entries.values(), entries.keys(), loc="outside right center")
        figure.supxlabel(note, fontsize=8.5, color="#666666")
        return
    legend = figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", title=note,
        ncols=_legend_columns(panels),
    )  # fmt: skip
    legend.get_title().set(fontsize=8.5, color="#666666")


def _labels(panels: Sequence[Panel]) -> list[str]:
    """Everything that the legend names."""
    lines = dict.fromkeys(line.label for panel in panels for line in panel.lines if line.label)
    marks = dict.fromkeys(p.mark_label for p in panels if p.mark_label)
    return [*lines, *marks, *([_FRONT] if any(len(p.front) > 1 for p in panels) else [])]


def _legend_columns(panels: Sequence[Panel]) -> int:
    labels = _labels(panels)
    room = LETTERS if len(panels) == 1 else round(1.24 * LETTERS)
    return max(1, min(len(labels), room // (max(map(len, labels)) + 6)))


def _legend_rows(panels: Sequence[Panel]) -> int:
    """Rows of the legend below the panels; 0 where it stands beside them, or there is none."""
    labels = _labels(panels)
    if not labels or (len(panels) == 1 and max(map(len, labels)) <= LEGEND_COLUMN):
        return 0
    return math.ceil(len(labels) / _legend_columns(panels))
