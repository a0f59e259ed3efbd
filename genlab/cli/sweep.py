"""``genlab sweep``: score many ways of sampling a model, and draw curves of them."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genlab.cli.common import (
    ANY_PATH,
    FOLDER,
    Progress,
    autoencoder_option,
    best_device,
    echo_json,
    json_option,
    plain_warnings,
    progress,
    refuse_duplicates,
    split_arguments,
)
from genlab.cli.eval import protocol_options, settings_of

if TYPE_CHECKING:  # torch is imported only when points are checked: --help answers at once
    from genlab.eval.leaderboard.records import Record
    from genlab.eval.sweep.curves import Chart
    from genlab.eval.sweep.points import Plan
    from genlab.eval.sweep.run import Checked, Common, Result
    from genlab.runs.processes import Processes

EPILOG = """\b
Examples:
  genlab sweep edm-fmnist --protocol offline-2k \\
      --grid sampler.solver.name=heun,unipc sampler.schedule.num_steps=5,10,20
  genlab sweep dit-fmnist --protocol offline-2k --x scale --x recall --metrics fd,pr,consistency \\
      --variant cfg sampler.guidance='[{name: cfg}]' \\
      --variant interval sampler.guidance='[{name: cfg, when: {sigma: [0.3, 3]}}]' \\
      --grid sampler.guidance.0.scale=1.5,2,4
  genlab sweep edm-fmnist --protocol quick-5k --points points.yaml --repeats 3
  genlab sweep edm-fmnist --grid steps=5,10,20 guidance=1,2 --dry-run
  accelerate launch --multi_gpu -m genlab sweep my-model/ --protocol edm-50k --grid steps=9,18,36

Keys are what 'genlab eval' takes as KEY=VALUE, and model, steps, guidance, stitch (SMALL:SHARE).
Values are cut at commas outside brackets and quotes. Every variant is run over the whole grid; the
points of a file stand for themselves. KEY=VALUE before --grid and --variant holds for all points.

All points have the same seeds. Each is an ordinary evaluation, kept by its identity: nothing is
computed twice, in this sweep or another, and one that was stopped, even killed, goes on where it
was when the same command is given again. The folder gets sweep.json and the charts."""

_GREEDY = ("--grid", "--variant")


class _Sweep(click.Command):
    """A command whose ``--grid`` and ``--variant`` take all the settings behind them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Gather what belongs to one option."""
        return super().parse_args(ctx, _gathered(args))


def _gathered(args: Sequence[str]) -> list[str]:
    """``--grid a=1 b=2`` as two options, ``--variant x a=1 b=2`` with its settings in one word."""
    words: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word not in _GREEDY:
            words.append(word)
            continue
        name = [rest.pop(0)] if word == "--variant" and rest else []
        settings = []
        while rest and "=" in rest[0] and not rest[0].startswith("-"):
            settings.append(rest.pop(0))
        if word == "--variant":
            blank = [] if settings or not (rest and not rest[0].strip()) else [rest.pop(0)]
            words += [word, *name, " ".join(settings or blank or [""])] if name else [word]
        else:
            words += [each for text in settings for each in (word, text)] or [word]
    return words


@click.command("sweep", cls=_Sweep, epilog=EPILOG)
@click.argument("arguments", nargs=-1, metavar="MODEL [KEY=VALUE]...")
@click.option(
    "--grid",
    multiple=True,
    metavar="KEY=V,V,... [...]",
    help="Values whose product is run; several keys may follow one --grid.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=(str, str),
    metavar="NAME [KEY=VALUE]...",
    help="A line of its own in the charts, run over the whole grid.",
)
@click.option(
    "--points", type=ANY_PATH, metavar="FILE", help="A YAML list of points beside the grid."
)
@click.option(
    "--x",
    "axes",
    multiple=True,
    metavar="WHAT",
    help="Draw over nfe, seconds, a key of the sweep, or a score; may be repeated. Default: nfe "
    "where it changes along the curves, else the key that does.",
)
@click.option(
    "--along", metavar="KEY", help="Key whose values a line joins; default: steps, else numbers."
)
@protocol_options
@autoencoder_option
@click.option("--name", metavar="NAME", help="How the leaderboard calls the model.")
@click.option("-o", "--output", type=FOLDER, help="Folder of charts and sweep.json: sweeps/MODEL.")
@click.option(
    "--board",
    type=FOLDER,
    default=Path("leaderboard"),
    show_default=True,
    help="Folder of records.",
)
@click.option("--no-record", is_flag=True, help="Write no records.")
@click.option("--no-charts", is_flag=True, help="Draw nothing; sweep.json is written.")
@click.option("--dry-run", is_flag=True, help="Check and print the points, and stop.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(
    arguments: tuple[str, ...],
    grid: tuple[str, ...],
    variants: tuple[tuple[str, str], ...],
    points: Path | None,
    protocol: str | None,
    steps: int | None,
    guidance: float | None,
    autoencoder: str | None,
    name: str | None,
    output: Path | None,
    board: Path,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Score many ways of sampling a model, and draw curves with their Pareto front.

    MODEL is a bundled model, one of the zoo, a folder or an official file. All points are checked
    before anything is computed; one that fails later is reported, and the others go on.
    """
    model, base = split_arguments(arguments)
    if model is None:
        raise click.UsageError("what is to be sampled? name a model")
    charted = {key: options.pop(key) for key in ("axes", "along", "no_charts")}
    shown = {key: options.pop(key) for key in ("no_record", "as_json")}
    short = {"steps": steps, "guidance": guidance}
    base = [*(f"{k}={v}" for k, v in short.items() if v is not None), *base]
    from genlab.eval.prepare import merge_settings, model_name
    from genlab.eval.sweep.points import make_plan
    from genlab.eval.sweep.run import Common
    from genlab.runs.processes import join

    flags = settings_of(options)
    refuse_duplicates(base, flags)
    plan = make_plan(base, grid, variants, points)
    device = merge_settings(protocol, plan.points[0].config_overrides, flags).device
    processes = join(device)
    common = Common(
        model=model,
        device=processes.device or device or best_device(),
        protocol=protocol,
        flags=flags,
        name=name,
        autoencoder=autoencoder,
    )
    folder = output or Path("sweeps") / model_name(model)
    sweep = _Run(plan, common, processes, folder, None if shown["no_record"] else board)
    with plain_warnings():
        sweep.check(**charted)
        if dry_run:
            sweep.show_plan(shown["as_json"])
            return
        failed = sweep.draw(quiet, shown["as_json"])
    if failed:
        click.get_current_context().exit(2)


class _Run:
    """One sweep, from its checked points to its files."""

    def __init__(
        self,
        plan: "Plan",
        common: "Common",
        processes: "Processes",
        folder: Path,
        board: Path | None,
    ) -> None:
        self.plan, self.common, self.processes = plan, common, processes
        self.folder, self.board = folder, board
        self.checked: list[Checked] = []
        self.results: list[Result] = []
        self.records: dict[str, Path] = {}

    def check(self, axes: Sequence[str], along: str | None, no_charts: bool) -> None:
        """Check all points, before anything is computed."""
        from genlab.charts import require_matplotlib
        from genlab.eval.sweep.curves import Curves
        from genlab.eval.sweep.report import directions_of
        from genlab.eval.sweep.run import check
        from genlab.files import check_writable

        if not no_charts:
            require_matplotlib()
        self.no_charts = no_charts
        for place in (self.folder, self.board):
            if place is not None:
                check_writable(place)
        self.checked = check(self.plan, self.common, self.processes)
        self.curves = Curves(self.plan, directions_of(self.checked), along)
        self.axes = [self.curves.resolve(x) for x in dict.fromkeys(axes)]

    def show_plan(self, as_json: bool) -> None:
        """Print the points and what they will cost."""
        from genlab.eval.sweep.report import plan_line, print_plan

        if self.processes.rank > 0:
            return
        if as_json:
            echo_json(self._json([], []))
            return
        print_plan(self.plan, self.checked, _width())
        click.echo(plan_line(self.checked))

    def draw(self, quiet: bool, as_json: bool) -> bool:
        """Compute what is missing, and write and say what was found.

        Returns:
            Whether a point failed.
        """
        from genlab.eval.sweep.report import plan_line, print_results, summary
        from genlab.eval.sweep.run import run

        first = self.processes.rank == 0
        quiet = quiet or not first
        if not quiet:
            click.echo(plan_line(self.checked), err=True)
        with ExitStack() as stack:
            bar = _Bar(stack, self.checked, quiet)
            self.results = run(
                self.checked,
                self.common,
                processes=self.processes,
                on_start=bar.start,
                on_progress=bar.advance,
                on_result=lambda result: self._note(result, bar),
            )
        failed = any(result.error for result in self.results)
        if not first:
            return failed
        charts = self._charts()
        pictures = self._draw_charts(charts)
        whole = self._json(charts, pictures)
        self._write(whole)
        if as_json:
            echo_json(whole)
            return failed
        print_results(self.results, charts, _width())
        for line in summary(self.results, charts, self.common):
            click.echo(line)
        click.echo(f"written: {self.folder / 'sweep.json'}" + _also(self.folder, pictures))
        return failed

    def _note(self, result: "Result", bar: "_Bar") -> None:
        """Record a point as soon as it is computed."""
        bar.finish(result)
        self.results = [*self.results, result]
        if self.processes.rank > 0:
            return
        if self.board is not None and result.record is not None:
            self.records[result.checked.point.label] = _on_board(self.board, result.record)
        self._write(self._json([], []))

    def _charts(self) -> "list[Chart]":
        from genlab.eval.sweep.report import measured, shown_scores

        measurements = measured(self.results)
        if not measurements:
            return []
        axes = self.axes or [self.curves.default_x(measurements)]
        scores = shown_scores(self.curves.directions, measurements)
        return [self.curves.chart(s, x, measurements) for x in axes for s in scores if s != x]

    def _draw_charts(self, charts: "Sequence[Chart]") -> list[Path]:
        from genlab.eval.prepare import model_name
        from genlab.eval.sweep.curves import draw_charts
        from genlab.eval.sweep.report import note_of

        if self.no_charts or not charts:
            return []
        record = next(r.record for r in self.results if r.record is not None)
        note = note_of(record, self.checked[0].config.repeats)
        title = self.common.name or model_name(self.common.model)
        return draw_charts(charts, self.folder, title, note)

    def _json(self, charts: "Sequence[Chart]", pictures: Sequence[Path]) -> dict[str, Any]:
        from genlab.eval.sweep.report import to_json

        return to_json(
            self.plan, self.checked, self.results, self.common, self.records, charts, pictures
        )

    def _write(self, whole: dict[str, Any]) -> None:
        import json

        from genlab.files import write_text

        write_text(self.folder / "sweep.json", json.dumps(whole, indent=1, ensure_ascii=False))


def _on_board(board: Path, record: "Record") -> Path:
    """The file of a record; a measurement that is there under another name is not added again."""
    from dataclasses import replace

    from genlab.errors import EvaluationError
    from genlab.eval.leaderboard.records import read_record, record_id, write_record

    ours = record_id(replace(record, model="any"))
    for path in sorted(board.glob("*.json")):
        try:
            if record_id(replace(read_record(path), model="any")) == ours:
                return path
        except EvaluationError:  # not one of ours; the leaderboard will name it
            continue
    return write_record(board, record)


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _also(folder: Path, pictures: Sequence[Path]) -> str:
    charts = [path for path in pictures if path.suffix == ".png"]
    if not charts:
        return ""
    shown = next((path for path in charts if path.stem.startswith("overview")), charts[0])
    number = f"{len(charts)} charts" if len(charts) > 1 else "one chart"
    return f", {number} (png and svg) in {folder}, first look: {shown}"


class _Bar:
    """One progress bar over all points; its unit is a network evaluation."""

    def __init__(self, stack: ExitStack, points: "Sequence[Checked]", quiet: bool) -> None:
        todo = {point.key: point for point in points if point.record is None}
        self._stack, self._quiet = stack, quiet or not todo
        self._number, self._count = 0, len(todo)
        self._total = sum(point.work for point in todo.values())
        self._bar: Progress | None = None
        self._point: Checked | None = None
        self._images = 0

    def start(self, point: "Checked") -> None:
        """Begin with a point."""
        if self._quiet:
            return
        if self._bar is None:
            self._bar = self._stack.enter_context(progress("sweeping", self._total))
        self._number, self._point, self._images = self._number + 1, point, 0

    def advance(self, task: str, images: int, total: int) -> None:
        """Count images that were drawn and scored."""
        if self._bar is None or self._point is None or not task.startswith("scoring"):
            return
        self._images += images
        self._bar.advance(images * (self._point.nfe or 1))
        self._bar.describe(
            f"point {self._number} of {self._count} ({self._point.point.label}), "
            f"{self._images:,} of {self._point.images:,} images; evaluations"
        )

    def finish(self, result: "Result") -> None:
        """Report the result of a point; the rest of a failed one counts as done."""
        if self._quiet or not (result.fresh or result.error):
            return
        point = result.checked
        if self._bar is not None and self._point is point:
            self._bar.advance((point.images - self._images) * (point.nfe or 1))
        outcome = f"failed: {result.error}" if result.error else _scores(result.record)
        click.echo(f"[{self._number}/{self._count}] {point.point.label}: {outcome}", err=True)


def _scores(record: "Record | None") -> str:
    from genlab.eval.leaderboard.wording import score_text

    scores = {} if record is None else record.scores
    return ", ".join(f"{name} {score_text(score)}" for name, score in list(scores.items())[:3])
