"""A sweep's scores as curves: which points a line joins, over what, and which are Pareto-best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genlab import charts
from genlab.charts import Line, Panel
from genlab.errors import UnknownNameError, nearest
from genlab.eval.leaderboard.ranking import pareto_front, plain_name
from genlab.eval.leaderboard.records import Score
from genlab.eval.sweep.points import Plan, Point, number_of, shown

COSTS = {"nfe": "nfe", "seconds": "seconds_per_image"}
"""What a curve may be drawn over, beside the keys of a sweep and its scores -> key of a cost."""

COST_NAMES = {"nfe": "network evaluations per image (NFE)", "seconds": "seconds per image"}

LOG_FROM = 5.0
"""Costs that differ by this factor are drawn on a logarithmic axis."""

_AXIS_NAMES = {"num_steps": "solver steps", "steps": "solver steps", "guidance": "guidance scale"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point with its scores, as far as curves read it.

    Attributes:
        point: which one.
        scores: full score name -> score.
        cost: as on its record.
    """

    point: Point
    scores: Mapping[str, Score]
    cost: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One score over one thing.

    Attributes:
        score: full name.
        x: ``nfe``, ``seconds``, a key of the sweep, or a full score name.
        panel: what is drawn.
        best: labels of the Pareto-best points where x is a cost or a score, by rising x; over a
            key of the sweep, that of the best point.
        is_front: whether `best` is a Pareto front.
    """

    score: str
    x: str
    panel: Panel
    best: tuple[str, ...]
    is_front: bool

    @property
    def stem(self) -> str:
        """Name of its files, without their ending."""
        x = plain_name(self.x)[0].replace(".", "-")
        return f"{plain_name(self.score)[0]}-vs-{x}"


class Curves:
    """The curves of a sweep.

    Args:
        plan: its points.
        directions: full score name -> whether lower is better; None where neither is.
        along: the key that changes along a line, or the end of its name; None chooses: the solver
            steps where they are swept over, else the last key with numbers.

    Raises:
        UnknownNameError: the sweep has no such key.
    """

    def __init__(
        self, plan: Plan, directions: Mapping[str, bool | None], along: str | None = None
    ) -> None:
        self.plan, self.directions = plan, directions
        self.along = self._default_along() if along is None else self._key(along)

    def resolve(self, x: str) -> str:
        """What a name on the command line means as an x axis.

        Raises:
            UnknownNameError: it is no cost, no key of the sweep and none of its scores.
        """
        if x in COSTS:
            return x
        scores = [name for name in self.directions if x in (name, plain_name(name)[0])]
        return scores[0] if scores else self._key(x)

    def _key(self, name: str) -> str:
        keys = [k for k in self.plan.axes if name in (k, self.plan.short[k])]
        keys = keys or [k for k in self.plan.axes if k.endswith(f".{name}")]
        if len(keys) == 1:
            return keys[0]
        if keys:
            raise UnknownNameError(f"{name!r} may be {' or '.join(keys)}; write the whole key")
        keys = [self.plan.short[key] for key in self.plan.axes]
        candidates = [*COSTS, *keys, *(plain_name(s)[0] for s in self.directions)]
        raise UnknownNameError(
            f"there is nothing called {name!r} to draw over; {nearest(name, candidates)}"
        )

    def _default_along(self) -> str | None:
        axes = self.plan.axes
        steps = [key for key in axes if key.rpartition(".")[2] in ("num_steps", "steps")]
        numeric = [k for k, values in axes.items() if all(number_of(v) is not None for v in values)]
        return next(iter([*steps, *reversed(numeric), *reversed(list(axes))]), None)

    def default_x(self, measured: Sequence[Measured]) -> str:
        """The evaluations where they change from point to point of every line, else the key."""
        lines = [members for members in self.lines(measured).values() if len(members) > 1]
        counts = [[each.cost.get("nfe") for each in members] for members in lines]
        vary = all(len(set(nfe)) == len(nfe) and None not in nfe for nfe in counts)
        return "nfe" if self.along is None or (lines and vary) else self.along

    def lines(
        self, measured: Iterable[Measured], along: str | None = None
    ) -> dict[str, list[Measured]]:
        """Label -> the points of a line, in the order in which they are joined."""
        along = along or self.along
        lines: dict[str, list[Measured]] = {}
        for each in measured:
            settings = each.point.settings
            others = [
                f"{self.plan.short[key]} {shown(settings[key])}"
                for key in self.plan.axes
                if key != along and key in settings
            ]
            label = ", ".join([each.point.variant] * bool(each.point.variant) + others)
            lines.setdefault(label, []).append(each)
        order = self.plan.axes.get(along or "", ())
        for members in lines.values():
            members.sort(key=lambda each: _place(each, along, order))
        return lines

    def chart(self, score: str, x: str, measured: Sequence[Measured]) -> Chart:
        """One score over one thing.

        Args:
            score: full name.
            x: what `resolve` gave.
            measured: all points that have scores.
        """
        values = self.plan.axes.get(x, ())
        numbers = [number_of(value) for value in values]
        names = values if None in numbers else ()
        shown = [e for e in measured if score in e.scores and self._x(e, x) is not None]
        points = [(self._x(each, x) or 0.0, each.scores[score].value) for each in shown]
        best = self._best(score, x, points)
        lines = []
        for label, members in self.lines(shown, x if values else None).items():
            where = [shown.index(each) for each in members]
            scores = [each.scores[score] for each in members]
            lines.append(
                Line(
                    label=label,
                    x=[points[i][0] for i in where],
                    y=[points[i][1] for i in where],
                    low=[each.low for each in scores],
                    high=[each.high for each in scores],
                    marked=[at for at, i in enumerate(where) if i in best],
                )
            )
        places = [place for place, _ in points]
        cost = x in COSTS and min(places, default=0) > 0
        panel = Panel(
            lines=lines,
            x_label=self._x_label(x),
            y_label=self._score_label(score),
            mark_label="best" if values else "Pareto-best",
            x_names=names,
            log_x=cost and max(places) / min(places) >= LOG_FROM,
            front=() if values else self._corners(score, x, [points[i] for i in best]),
        )
        labels = tuple(shown[number].point.label for number in best)
        return Chart(score=score, x=x, panel=panel, best=labels, is_front=x not in self.plan.axes)

    def _x(self, each: Measured, x: str) -> float | None:
        """Where a point lies; None where it has no such value."""
        if x in COSTS:
            return each.cost.get(COSTS[x])
        if x in self.directions:
            return each.scores[x].value if x in each.scores else None
        values = self.plan.axes[x]
        value = each.point.settings.get(x)
        if value is None:
            return None
        numeric = all(number_of(other) is not None for other in values)
        return number_of(value) if numeric else float(values.index(value))

    def _best(self, score: str, x: str, points: Sequence[tuple[float, float]]) -> list[int]:
        """Numbers of the points on the Pareto front, by rising x; over a key, of the best point."""
        lower = self.directions[score]
        if lower is None or not points:
            return []
        if x in self.plan.axes:
            values = [value for _, value in points]
            return [values.index(min(values) if lower else max(values))]
        x_lower = True if x in COSTS else self.directions[x]
        if x_lower is None:
            return []
        sign = 1 if x_lower else -1
        front = pareto_front([(sign * place, value) for place, value in points], lower)
        return front if x_lower else front[::-1]

    def _corners(
        self, score: str, x: str, front: Sequence[tuple[float, float]]
    ) -> list[tuple[float, float]]:
        """The stepped line between points of a front: what is reached with no more than each x."""
        falls = x in COSTS or self.directions[x]
        corners: list[tuple[float, float]] = []
        for here, (place, value) in enumerate(front):
            if here:
                before = front[here - 1]
                corners.append((place, before[1]) if falls else (before[0], value))
            corners.append((place, value))
        return corners

    def _x_label(self, x: str) -> str:
        if x in COSTS:
            return COST_NAMES[x]
        if x in self.directions:
            return self._score_label(x)
        last = x.rpartition(".")[2]
        if last == "scale" and ".guidance." in x:
            return "guidance scale"
        return _AXIS_NAMES.get(last, x)

    def _score_label(self, score: str) -> str:
        suffixes = {True: " (lower is better)", False: " (higher is better)", None: ""}
        return f"{score}{suffixes[self.directions[score]]}"


def _place(each: Measured, along: str | None, order: Sequence[str]) -> float:
    value = each.point.settings.get(along or "")
    if value is None:
        return float("inf")
    number = number_of(value)
    return float(order.index(value)) if number is None else number


def draw_charts(all_charts: Sequence[Chart], folder: Path, title: str, note: str) -> list[Path]:
    """Draw each chart, and those of one x axis together in an overview.

    Args:
        all_charts: at least one.
        folder: where the files go.
        title: above each.
        note: small, below each: how the scores were made.

    Returns:
        The files.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    paths: list[Path] = []
    for chart in all_charts:
        paths += charts.draw([chart.panel], folder / chart.stem, title=title, note=note)
    by_x: dict[str, list[Chart]] = {}
    for chart in all_charts:
        by_x.setdefault(chart.x, []).append(chart)
    for x, group in by_x.items():
        if len(group) > 1:
            stem = f"overview-vs-{plain_name(x)[0].replace('.', '-')}"
            panels = [replace(c.panel, title=c.panel.y_label, y_label="") for c in group]
            columns = 2 if len(panels) <= 4 else 3
            paths += charts.draw(panels, folder / stem, title=title, note=note, columns=columns)
    return paths
