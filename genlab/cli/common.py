"""What several commands share: options that read alike everywhere, progress bars, JSON."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from genlab.cli.completion import complete_config
from genlab.errors import MOST_MESSAGE, printable

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

device_option: Decorator = click.option(
    "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps; default: the best there is."
)
"""``--device``; the function gets ``device: str | None``."""

DTYPES = click.Choice(["float32", "float16", "bfloat16"])

dtype_option: Decorator = click.option(
    "--dtype", type=DTYPES, help="What the network computes in; default: float32."
)
"""``--dtype``; the function gets ``dtype: str | None``."""


stitch_option: Decorator = click.option(
    "--stitch",
    multiple=True,
    metavar="MODEL:SHARE",
    help="A small model that takes the first share of the run: dit-fmnist-s:0.4; repeatable.",
)
"""``--stitch``; the function gets ``stitch: tuple[str, ...]``, empty for the sampler's own."""


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The subject of a command, which may be left out, and the overrides behind it."""
    words = [word for word in arguments if "=" not in word]
    if len(words) > 1:
        raise click.UsageError(
            f"{words[1]!r} is not a setting: write KEY=VALUE, for instance batch_size=8"
        )
    return (words[0] if words else None), [word for word in arguments if "=" in word]


def best_device() -> str:
    """The accelerator where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def echo_json(value: Mapping[str, Any] | list[Any]) -> None:
    """Print one JSON document on stdout; paths and other plain objects as text."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


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
def progress(description: str, total: int | None, done: int = 0) -> Iterator[Progress]:
    """A progress bar on stderr; nothing at all where stderr is not a terminal.

    Args:
        description: what is being done, at the left of the bar.
        total: how much there is to do, in any unit; None if unknown.
        done: how much of it an earlier run did.
    """
    if not sys.stderr.isatty():
        yield Progress(lambda amount: None, lambda text: None, lambda total: None)
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
