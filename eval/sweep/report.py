"""The results of a sweep: as JSON, as a table, and as a summary."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from genlab import config as configs
from genlab.errors import escaped
from genlab.eval.leaderboard.ranking import plain_name
from genlab.eval.leaderboard.records import Record
from genlab.eval.leaderboard.wording import cost_text, score_text
from genlab.eval.sweep.curves import COST_NAMES, Chart, Measured
from genlab.eval.sweep.points import Plan
from genlab.eval.sweep.run import Checked, Common, Result

FORMAT = 1
"""Version of ``sweep.json``."""

PIPE_WIDTH = 100_000


def measured(results: Sequence[Result]) -> list[Measured]:
    """The points that have scores."""
    return [
        Measured(point=result.checked.point, scores=result.record.scores, cost=result.record.cost)
        for result in results
        if result.record is not None
    ]


def directions_of(points: Sequence[Checked]) -> dict[str, bool | None]:
    """Full score name -> whether lower is better, over all points."""
    return {name: lower for point in points for name, lower in point.directions.items()}


def shown_scores(directions: Mapping[str, bool | None], results: Sequence[Measured]) -> list[str]:
    """The scores that tables and charts have room for, in the order of the metrics."""
    return [name for name in directions if any(name in each.scores for each in results)]


def sample_command(checked: Checked, common: Common) -> str:
    """The command that draws images as a point does.

    What the protocol itself says of the sampler is written out.
    """
    words = ["genlab", "sample", checked.model]
    short = checked.point.keys
    words += [f"--{key}={short[key]}" for key in ("steps", "guidance") if key in short]
    if _says_sampler(common.protocol):
        sampler = configs.to_plain(checked.config.sampler)
        words = [*words[:3], *(f"sampler.{key}={json.dumps(sampler[key])}" for key in sampler)]
    else:
        keys = ("sampler", "dtype")
        words += [
            t for t in checked.point.config_overrides if t.split("=")[0].split(".")[0] in keys
        ]
    if "dtype" in common.flags:
        words.append(f"dtype={common.flags['dtype']}")
    return shlex.join(words)


def _says_sampler(protocol: str | None) -> bool:
    return protocol is not None and "sampler" in configs.read_spec("eval", protocol)[1]


def to_json(
    plan: Plan,
    points: Sequence[Checked],
    results: Sequence[Result],
    common: Common,
    records: Mapping[str, Path],
    charts: Sequence[Chart] = (),
    pictures: Sequence[Path] = (),
) -> dict[str, Any]:
    """The whole sweep as plain values.

    Args:
        plan: its points.
        points: the same, checked.
        results: of those that are known so far.
        common: what they share.
        records: label -> the record on the leaderboard.
        charts: what is drawn of them.
        pictures: the files of charts.
    """
    by_label = {result.checked.point.label: result for result in results}
    return {
        "format": FORMAT,
        "model": common.model,
        "protocol": common.protocol,
        "axes": {key: list(values) for key, values in plan.axes.items()},
        "scores": {
            name: {"lower_is_better": lower} for name, lower in directions_of(points).items()
        },
        "points": [
            _point_json(point, by_label.get(point.point.label), common, records) for point in points
        ],
        "charts": [
            {
                "score": chart.score,
                "x": chart.x,
                "pareto_front" if chart.is_front else "best": list(chart.best),
            }
            for chart in charts
        ],
        "pictures": [path.name for path in pictures],
    }


def _point_json(
    checked: Checked, result: Result | None, common: Common, records: Mapping[str, Path]
) -> dict[str, Any]:
    point, record = checked.point, None if result is None else result.record
    cost = {} if record is None else record.cost
    scores = {} if record is None else record.scores
    path = records.get(point.label)
    return {
        "label": point.label,
        "variant": point.variant,
        "settings": dict(point.settings),
        "overrides": list(point.overrides),
        "model": checked.model,
        "sampler": configs.to_plain(checked.config.sampler),
        "dtype": checked.config.dtype,
        "images": checked.images,
        "nfe": checked.nfe if "nfe" not in cost else round(cost["nfe"]),
        "seconds_per_image": cost.get("seconds_per_image"),
        "cost": dict(cost),
        "scores": {
            name: {"value": s.value, "low": s.low, "high": s.high, "values": list(s.values)}
            for name, s in scores.items()
        },
        "record": None if path is None else str(path),
        "error": "" if result is None else result.error,
        "finished": record is not None,
        "command": sample_command(checked, common),
    }


def print_plan(plan: Plan, points: Sequence[Checked], width: int | None) -> None:
    """The points with what they will cost."""
    rows = [
        [
            point.point.label,
            "?" if point.nfe is None else str(point.nfe),
            f"{point.images:,}",
            "cached" if point.record is not None else "",
        ]
        for point in points
    ]
    _print_table(["point", "NFE", "images", ""], rows, width)


def plan_line(points: Sequence[Checked]) -> str:
    """How much there is to do."""
    todo = list({point.key: point for point in points if point.record is None}.values())
    done = sum(point.record is not None for point in points)
    images = sum(point.images for point in todo)
    line = f"{len(points)} point{'s' if len(points) != 1 else ''}, {done} of them finished already"
    if not todo:
        return f"{line}: nothing to compute"
    counted = [point.images * point.nfe for point in todo if point.nfe is not None]
    line = f"{line}; {images:,} images to draw"
    if not counted:
        return line
    least = "at least " * (len(counted) < len(todo))
    return f"{line}, {least}{sum(counted):,} network evaluations"


def print_results(results: Sequence[Result], charts: Sequence[Chart], width: int | None) -> None:
    """The scores as a table; those on a Pareto front, or the best over a key, have a star."""
    measurements = measured(results)
    directions = directions_of([result.checked for result in results])
    scores = shown_scores(directions, measurements)
    stars = {(chart.score, label) for chart in charts for label in chart.best}
    rows = []
    for result in results:
        label, record = result.checked.point.label, result.record
        if record is None:
            rows.append([label, *("failed" for _ in scores), "", ""])
            continue
        cells = [_cell(record, score, (score, label) in stars) for score in scores]
        rows.append([label, *cells, *(cost_text(record, cost) for cost in _COSTS)])
    heads = [_head(score, directions[score]) for score in scores]
    _print_table(["point", *heads, "NFE", "s/image"], rows, width)


_COSTS = ("nfe", "seconds_per_image")


def _cell(record: Record, score: str, star: bool) -> str:
    text = score_text(record.scores[score]) if score in record.scores else ""
    return f"{text}{' *' if star else '  '}"


def _head(score: str, lower: bool | None) -> str:
    plain, extractor = plain_name(score)
    arrow = {True: "↓", False: "↑", None: ""}[lower]
    return f"{plain} {arrow}  " + (f"\n[{extractor}]  " if extractor else "")


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> None:
    console = Console(width=width or PIPE_WIDTH, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        left = number == 0
        table.add_column(
            Text(head), justify="left" if left else "right", overflow="fold", no_wrap=not left
        )
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    console.print(table, soft_wrap=False)


def summary(results: Sequence[Result], charts: Sequence[Chart], common: Common) -> list[str]:
    """The best points with the commands that draw with them, then what failed."""
    lines = []
    best: dict[str, dict[str, list[str]]] = {}
    for chart in charts:
        over = COST_NAMES.get(chart.x, plain_name(chart.x)[0])
        where = f" against {over}" if chart.is_front else " of all"
        for label in chart.best:
            scores = best.setdefault(label, {}).setdefault(where, [])
            if plain_name(chart.score)[0] not in scores:  # several keys have one best point
                scores.append(plain_name(chart.score)[0])
    fronts = any(chart.is_front for chart in charts)
    if best:
        lines.append(
            "* Pareto-best: no other point is as good for less" if fronts else "* the best point"
        )
    for result in results:
        label = result.checked.point.label
        if label in best:
            reasons = [f"{', '.join(scores)}{where}" for where, scores in best[label].items()]
            lines.append(f"{label}: {'; '.join(reasons)}")
            lines.append(f"    {sample_command(result.checked, common)}")
    return lines + [f"failed: {r.checked.point.label}: {r.error}" for r in results if r.error]


def note_of(record: Record, repeats: int) -> str:
    """How scores were made, for below a chart."""
    metadata = record.protocol
    reference = metadata.get("reference") or {}
    parts = [f"{metadata.get('count', 0):,} images"]
    if repeats > 1:
        parts[0] = f"mean of {repeats} draws of {parts[0]}, bars: 95 %"
    if reference.get("name"):
        parts[0] += f" against {reference['name']}"
    if (extractor := (metadata.get("extractor") or {}).get("name")) not in (None, "none"):
        parts.append(f"extractor {extractor}")
    if metadata.get("name"):
        parts.append(f"protocol {metadata['name']}")
    return ", ".join(parts)
