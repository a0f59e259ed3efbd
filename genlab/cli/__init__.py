"""The command line: one file a command, and one place where errors become a sentence.

The command ``foo`` is the attribute ``command`` of ``genlab/cli/foo.py``, imported only when it is
asked for, so that ``genlab --help`` answers at once and no command pays for the imports of another.
"""

import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from genlab import __version__
from genlab.cli.common import plain_warnings, show_fetches
from genlab.cli.errors import explain, silence
from genlab.cli.memory import keep_freed_memory
from genlab.cli.streams import open_streams
from genlab.errors import nearest

COMMANDS = {
    "sample": "Draw images from a generator.",
    "schedule": "Make a noise schedule for one model, for sampling in few steps.",
    "compare": "Lay the images of several runs out side by side.",
    "stitch-similarity": "Draw how alike a small and a large model are at each step.",
    "train": "Train a generator, or go on with a run.",
    "finetune": "Adapt a trained generator to your own images.",
    "adapter": "Look at fine-tuned adapters, keep them by name, merge them.",
    "retarget": "Give a GAN classes that a classifier knows, without images of them.",
    "forgetting": "Measure what is left of classes that a model was made to forget.",
    "eval": "Score a model or a set of images; the record says how.",
    "sweep": "Score many ways of sampling a model; draw curves with their Pareto front.",
    "leaderboard": "Rank scores that were made alike, as a table or a page.",
    "calibrate": "Make a GAN's discriminator fit to reject images by.",
    "convert": "Turn an official checkpoint into a GenLab folder; nothing in it is executed.",
    "data": "Check a data set, or pack it into a zip.",
    "push": "Put a model, an adapter or a classifier on the Hugging Face hub.",
    "pull": "Fetch a model of the Hugging Face hub, or its newest version.",
    "zoo": "List the official checkpoints, show their metadata, fetch them.",
    "samplers": "List solvers, schedules and guidance, or say what one does.",
    "presets": "List the shipped configurations, print or recommend one.",
    "completion": "Let Tab complete commands and names: bash, zsh, fish.",
    "doctor": "Say what this machine can do, or what a checkpoint holds.",
}
"""Command -> the line that ``genlab --help`` shows for it, in the order shown."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"genlab.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands from the table, without importing any."""
        commands = COMMANDS.items() if not incomplete.startswith("-") else ()
        items = [CompletionItem(name, help=text) for name, text in commands]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [item for item in items if item.value.startswith(incomplete)] + options

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one names the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}; {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'genlab COMMAND --help' tells more about a command; 'genlab completion --help' how Tab "
    "completes commands, models, presets and samplers.",
)
@click.version_option(__version__, prog_name="genlab", message="%(prog)s %(version)s")
def genlab() -> None:
    """Sample, train, fine-tune, score and convert class-conditional image generators."""


def _terminate(number: int, frame: object) -> NoReturn:
    """End on SIGTERM as on Ctrl-C: what is half written is removed on the way out."""
    sys.exit(128 + number)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the arguments after the program's name; None reads ``sys.argv``.

    Returns:
        The exit code: 0; 2 after an error that the user can mend (one sentence on stderr); 130
        after Ctrl-C; 143 after SIGTERM; 1 when the reader of a pipe went away.
    """
    ours = args is None  # the process
    if ours:
        keep_freed_memory()
        show_fetches()
        signal.signal(signal.SIGTERM, _terminate)
        open_streams()
    try:
        with plain_warnings() if ours else nullcontext():
            code = genlab.main(args, prog_name="genlab", standalone_mode=False)
        sys.stdout.flush()  # here, so that a reader who left is noticed here
    except BaseException as error:
        message, code = explain(error)
        _say(message)
    return code if isinstance(code, int) else 0


def _say(message: str) -> None:
    """Print a message on stderr, where that is open, and leave nothing to fail at exit."""
    try:
        if message:
            click.echo(message, err=True)
    except OSError:
        silence(sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # what could not be written is what the message says
        silence(sys.stdout)
