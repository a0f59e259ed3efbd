"""Turn an exception into one sentence and an exit code."""

import errno
import os
import sys
import traceback
from contextlib import suppress
from typing import TextIO, cast

import click

from genlab.cli.plugins import plugin_at_fault
from genlab.errors import MOST_MESSAGE, GenLabError, is_out_of_memory, printable

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT
PIPE_CLOSED = 1  # as click does where it notices first

NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", None)
"""What a group without a command raises; before click 8.2 it prints its help and ends well."""

_READING = ("genlab.checkpoints.", "genlab.data.", "genlab.saving.models")
"""Modules that read whole files, whatever the batch."""

CURES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "choose a place that you may read and write",
    errno.EPERM: "choose a place that you may read and write",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence to print (maybe empty) and the exit code for what ended a command.

    A fault in a plug-in of another package is a sentence that names it (`genlab.cli.plugins`). Any
    other exception that a user cannot mend is raised again: its traceback is a bug report. The
    environment variable ``GENLAB_TRACEBACK=1`` raises everything again.
    """
    if isinstance(error, SystemExit):
        return "", error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, click.exceptions.Exit):
        return "", error.exit_code
    if NO_ARGUMENTS is not None and isinstance(error, NO_ARGUMENTS):
        return error.format_message(), USER_ERROR  # the whole help, as click has it
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "genlab: interrupted; the same command again goes on where it can", INTERRUPTED
    if isinstance(error, BrokenPipeError):
        silence(sys.stdout)
        return "", PIPE_CLOSED
    if os.environ.get("GENLAB_TRACEBACK") == "1":
        raise error
    sentence = _sentence(error)
    if sentence is None:
        raise error
    return f"{_program(error)}: {printable(sentence, MOST_MESSAGE)}", USER_ERROR


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, click.UsageError):
        program = error.ctx.command_path if error.ctx else "genlab"
        return f"{_plain(error.format_message())} (see '{program} --help')"
    if isinstance(error, click.ClickException):
        return _plain(error.format_message())
    if isinstance(error, GenLabError):
        return " ".join(str(error).split("\n"))
    if is_out_of_memory(error):
        if _reads_or_builds(error):
            return "out of memory; use a smaller model or less data, or close other programs"
        return "out of memory; use a smaller batch, a smaller image or a smaller model"
    if isinstance(error, Exception) and (plugin := plugin_at_fault(error)):
        return plugin
    if isinstance(error, OSError):
        return _os_sentence(error)
    return None


def _reads_or_builds(error: BaseException) -> bool:
    """Whether memory ran out on a file or on a network itself, which no smaller batch cures."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        builds = frame.f_code.co_name == "__init__" and module.startswith("genlab.networks.")
        if builds or module.startswith(_READING):
            return True
    return False


def _os_sentence(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    cure = CURES.get(error.errno or 0)
    return f"{where}{text[:1].lower()}{text[1:]}" + (f"; {cure}" if cure else "")


def _program(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if isinstance(context, click.Context) else "genlab"


def _plain(message: str) -> str:
    """Click's messages as one sentence in our form: no capital, no full stop, one line."""
    line = " ".join(message.split()).rstrip(".")
    return line[:1].lower() + line[1:]


def silence(stream: TextIO | None) -> None:
    """Redirect a stream to nothing, so that the interpreter's own flush at exit stays quiet."""
    with suppress(AttributeError, OSError, ValueError):  # it is none, has no file, or is closed
        place = cast(TextIO, stream).fileno()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, place)
        os.close(sink)
