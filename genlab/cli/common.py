"""What several commands share: options that read alike everywhere, progress bars, JSON."""

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from genlab.choices import DTYPES
from genlab.cli.completion import complete_config
from genlab.errors import MOST_MESSAGE, OutputError, printable

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

MOST_CELL = 1_000
"""Characters of a cell of a table, which may hold several names."""

PIPE_WIDTH = 400
"""Columns of a table that no terminal shows."""

FOLDER = click.Path(file_okay=False, path_type=Path)
"""A folder that need not exist yet."""

ANY_PATH = click.Path(path_type=Path)
"""A file or folder that the command checks itself: its message can say what was expected there."""


def _check_overrides(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    for text in value:
        key, equals, _ = text.partition("=")
        if not equals or not key or key.startswith("-"):
            raise click.UsageError(
                f"{text!r} is not a setting: write KEY=VALUE, for instance batch_size=8", ctx
            )
    return value


overrides_argument: Decorator = click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE]...", callback=_check_overrides
)
"""Dotted overrides of the configuration; the function gets ``overrides: tuple[str, ...]``."""

config_option: Decorator = click.option(
    "--config",
    "config",
    metavar="SPEC",
    shell_complete=complete_config,
    help="A YAML file, or the name of a shipped configuration ('genlab presets').",
)
"""``--config SPEC``; the function gets ``config: str | None`` for `genlab.config.load`."""

dry_run_option: Decorator = click.option(
    "--dry-run", is_flag=True, help="Print the merged configuration and stop."
)
"""``--dry-run``; the function gets ``dry_run: bool``."""

json_option: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for other programs."
)
"""``--json``; the function gets ``as_json: bool``."""


def _check_device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a device that does not compute here before anything else is done."""
    if value is not None and value != "cpu":
        from genlab.compute import usable_device

        usable_device(value)
    return value


device_option: Decorator = click.option(
    "--device",
    metavar="DEVICE",
    callback=_check_device,
    help="cpu, cuda, cuda:1, mps; default: the best there is.",
)
"""``--device``; the function gets ``device: str | None``."""

DTYPE = click.Choice(DTYPES)

dtype_option: Decorator = click.option(
    "--dtype", type=DTYPE, help="What the network computes in; default: float32."
)
"""``--dtype``; the function gets ``dtype: str | None``."""


stitch_option: Decorator = click.option(
    "--stitch",
    multiple=True,
    metavar="MODEL:SHARE",
    help="A small model that takes the first share of the run: dit-fmnist-s:0.4; repeatable.",
)
"""``--stitch``; the function gets ``stitch: tuple[str, ...]``, empty for the sampler's own."""


adapter_option: Decorator = click.option(
    "--adapter",
    metavar="FOLDER",
    help="A fine-tuned adapter of MODEL: its folder, or the name that it is kept under.",
)
"""``--adapter``; the function gets ``adapter: str | None``."""


autoencoder_option: Decorator = click.option(
    "--autoencoder",
    metavar="FOLDER",
    help="Make images of a latent model's latents: diffusers' AutoencoderKL or AutoencoderTiny, "
    "by folder or name.",
)
"""``--autoencoder``; the function gets ``autoencoder: str | None``."""


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The subject of a command, which may be left out, and the overrides behind it."""
    words = [word for word in arguments if "=" not in word]
    if len(words) > 1:
        raise click.UsageError(
            f"{words[1]!r} is not a setting: write KEY=VALUE, for instance batch_size=8"
        )
    return (words[0] if words else None), [word for word in arguments if "=" in word]


def refuse_duplicates(overrides: Sequence[str], flags: Mapping[str, Any]) -> None:
    """Refuse a setting that an option and a KEY=VALUE both give: one would be dropped silently."""
    for text in overrides:
        key = text.partition("=")[0]
        if key.partition(".")[0] in flags:
            name = key.partition(".")[0]
            option = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} and {text!r} say the same twice; leave one of them out"
            )


def echo_settings(config: Any, left_out: Mapping[str, Any]) -> None:
    """Print a configuration as YAML for ``--config``, and in comments what it leaves out.

    Args:
        config: merged.
        left_out: dotted key -> the default that holds.
    """
    from genlab.config import setting_text, to_yaml

    click.echo(to_yaml(config), nl=False)
    if left_out:
        click.echo("# Left at their defaults; each line is a setting to change:")
    for key, value in left_out.items():
        click.echo(f"#   {setting_text(key, value)}")


def best_device() -> str:
    """The accelerator where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_model(name: str) -> None:
    """Refuse a model that is not there at once; loading it would import torch first.

    Args:
        name: what `genlab.load` takes.

    Raises:
        UnknownNameError: there is neither a model nor a file of this name.
        CheckpointError: there is no such path, or the zoo's model has not been fetched yet.
    """
    from genlab.checkpoints.places import find_folder

    find_folder(name)


def check_model_folder(folder: Path, *, overwrite: bool | None = None) -> None:
    """Say before the work begins that a folder is taken.

    Args:
        folder: that a model is to be written to.
        overwrite: whether a model that is there may be replaced; None where the command replaces
            none.

    Raises:
        OutputError: it holds a model that may not be replaced, or other files.
    """
    from genlab.saving.index import INDEX

    if (folder / INDEX).is_file():
        if not overwrite:
            option = "" if overwrite is None else ", or give --overwrite"
            raise OutputError(f"{folder} holds a model already; choose another folder{option}")
    elif folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds other files; choose a new or empty folder")


def echo_json(value: Mapping[str, Any] | list[Any]) -> None:
    """Print one JSON document on stdout; paths and other plain objects as text."""
    letters = str(getattr(sys.stdout, "encoding", "")).lower().startswith("utf")
    click.echo(json.dumps(value, indent=2, ensure_ascii=not letters, default=str))


class Progress:
    """One progress bar, advanced by the work done; ``set_total`` tells a size learnt later."""

    def __init__(
        self,
        advance: Callable[[int], None],
        describe: Callable[[str], None],
        set_total: Callable[[int], None],
    ) -> None:
        self.advance = advance
        self.describe = describe
        self.set_total = set_total


@contextmanager
def progress(
    description: str, total: int | None, done: int = 0, *, lines: bool = True
) -> Iterator[Progress]:
    """A progress bar on stderr, or where that is no terminal, a line now and then.

    Args:
        description: what is being done, at the left of the bar.
        total: how much there is to do, in any unit; None if unknown.
        done: how much of it an earlier run did.
        lines: whether there are lines without a terminal; False for who prints some of its own.
    """
    if not sys.stderr.isatty():
        log = _Lines(description, total, done, math.inf if not lines else LINE_SECONDS)
        yield Progress(log.advance, log.describe, log.set_total)
        return
    # Heavy, so only where a bar is drawn.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task(_label(description), total=total, completed=done)
        yield Progress(
            lambda amount: bars.advance(task, amount),
            lambda text: bars.update(task, description=_label(text)),
            lambda total: bars.update(task, total=total),
        )


class Bars:
    """One progress bar after the other, one for each task; each opens with its first advance.

    Args:
        stack: closes the last bar.
        quiet: show none.
    """

    def __init__(self, stack: ExitStack, quiet: bool = False) -> None:
        self._stack, self._quiet = stack, quiet
        self._task: str | None = None
        self._bar: Progress | None = None

    def advance(self, task: str, amount: int, total: int) -> None:
        """Count work on a task of the size ``total``."""
        if self._quiet:
            return
        if task != self._task:
            self._stack.close()
            self._task, self._bar = task, self._stack.enter_context(progress(task, total))
        assert self._bar is not None
        self._bar.advance(amount)


LINE_SECONDS = 30.0
"""How often a line of progress is printed where no terminal shows a bar: none for short work."""


class _Lines:
    """What a progress bar shows, as lines for a log: done, total, share, time left."""

    def __init__(self, description: str, total: int | None, done: int, every: float) -> None:
        self._text, self._total, self._done, self._first = description, total, done, done
        self._every = every
        self._began = self._printed = time.monotonic()

    def advance(self, amount: int) -> None:
        """Count work; say so if nothing was said for a while."""
        self._done += amount
        now = time.monotonic()
        if now - self._printed >= self._every:
            self._printed = now
            click.echo(self._line(now - self._began), err=True)

    def describe(self, text: str) -> None:
        """Change what is being done."""
        self._text = text

    def set_total(self, total: int) -> None:
        """Tell how much there is to do."""
        self._total = total

    def _line(self, seconds: float) -> str:
        if self._total is None:
            return f"{self._text}: {self._done:,}"
        fresh, left = self._done - self._first, self._total - self._done
        rest = f", {duration(seconds / fresh * left)} left" if fresh > 0 and left > 0 else ""
        share = self._done / max(1, self._total)
        return f"{self._text}: {self._done:,} of {self._total:,} ({share:.0%}){rest}"


def duration(seconds: float) -> str:
    """A time as people say it: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _label(description: str) -> str:
    """Text beside a progress bar: names in it may come from files."""
    from rich.markup import escape

    return escape(printable(description, 100))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Say warnings as sentences, without the line of code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: click.echo(
            f"warning: {printable(' '.join(str(message).split()), MOST_MESSAGE)}", err=True
        )
        yield


def show_fetches() -> None:
    """Say it on stderr when a model of the hub is fetched because its name was used."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            click.echo(printable(record.getMessage(), MOST_MESSAGE), err=True)

    logger = logging.getLogger("genlab.hub")
    logger.setLevel(logging.INFO)
    logger.addHandler(Lines())
    logger.propagate = False


def wrapped(text: str, indent: str = "", head: str = "") -> str:
    """A paragraph in lines of at most 100 characters, all indented; ``head`` opens the first."""
    import shutil
    import textwrap

    width = min(100, shutil.get_terminal_size(fallback=(100, 24)).columns)
    lines = textwrap.wrap(text, max(40, width - len(indent))) or [""]
    first = f"{head:<{len(indent)}}{lines[0]}"
    return "\n".join([first, *(indent + line for line in lines[1:])])


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], no_wrap: Sequence[str] = ("name",)
) -> None:
    """Draw a table as wide as the terminal; into a pipe each row keeps its one line, for grep."""
    import shutil

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in no_wrap)
    for row in rows:
        table.add_row(*(Text(printable(cell, MOST_CELL)) for cell in row))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width).print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it."""
    lines = [
        columns,
        ["---"] * len(columns),
        *([printable(cell, MOST_CELL) for cell in row] for row in rows),
    ]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
