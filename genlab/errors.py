"""The one exception family of GenLab.

Every message says what was wrong, where, and what to do about it. The command line prints that
sentence and exits with 2; a traceback is a bug. Each class also derives from the built-in exception
that a caller would expect.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

MOST_TEXT = 300
"""Characters of one piece of text from a file that a message, a table or a progress line shows."""
MOST_MESSAGE = 1_500
"""Characters of a whole message; only lists of everything that is known come near it."""


def printable(text: object, most: int = MOST_TEXT) -> str:
    r"""Text from a file as a terminal or a page may show it: no control characters, not too long.

    What is no printable character (control characters, line breaks, marks that turn the direction
    of writing) becomes an escape sequence. Of long text both ends stay.

    Args:
        text: anything; other things than text are written with ``str``.
        most: characters of the result.

    >>> printable("\x1b[31mred")
    '\\x1b[31mred'
    >>> printable("a" * 1000, most=9)
    'aaaa...aa'
    """
    whole = str(text)
    if len(whole) > most:  # first, so that escapes of a large file's text are not all made
        whole = _ends(whole, most)
    return _ends(escaped(whole), most)


def escaped(text: str) -> str:
    r"""Text with what is no printable character written as an escape sequence, however long.

    >>> escaped("caf\udce9")
    'caf\\udce9'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _ends(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    kept = max(most - 3, 0)
    tail = kept // 3
    return f"{text[: kept - tail]}...{text[len(text) - tail :]}"


_FOR_PROGRAMMERS = "; use sys.set_int_max_str_digits() to increase the limit"
"""What Python adds where it refuses a number of thousands of digits; nobody can follow it."""


class GenLabError(Exception):
    """Base of everything that a user can cause and mend; its message can always be printed."""

    def __str__(self) -> str:
        """The message without control characters, and cut where it is far too long."""
        text = super().__str__().replace("\n", " ").replace(_FOR_PROGRAMMERS, "")
        return printable(text, MOST_MESSAGE)


class ConfigError(GenLabError, ValueError):
    """A setting has a wrong name, type or value, or would have no effect."""


class UnknownNameError(GenLabError, LookupError):
    """A name (preset, solver, model, class) that nothing is registered under."""


class CheckpointError(GenLabError, ValueError):
    """A checkpoint is missing, damaged, of another format, or tries to run code."""


class DataError(GenLabError, ValueError):
    """A data set is missing, damaged or not laid out as needed."""


class LabelError(GenLabError, ValueError):
    """A class label that the generator does not know, or labels that do not match the seeds."""


class OutputError(GenLabError, OSError):
    """A result could not be written (folder not writable, disk full, made with other settings)."""


class SamplingError(GenLabError, RuntimeError):
    """Sampling went wrong (images are not finite, settings do not fit the model)."""


class TrainingError(GenLabError, RuntimeError):
    """Training cannot go on (loss is not finite, state does not match the run)."""


class EvaluationError(GenLabError, ValueError):
    """A score cannot be computed (too few images, features not finite, statistics do not fit)."""


class DownloadError(GenLabError, OSError):
    """A file could not be fetched, or what arrived is not what was promised."""


@contextmanager
def reading(
    where: Path | str,
    kind: type[GenLabError] = CheckpointError,
    cure: str = "fetch or save it again",
) -> Iterator[None]:
    """Read a foreign file: whatever goes wrong becomes a sentence that names the file.

    What a damaged or forged file makes libraries raise cannot be listed. Errors of our own pass as
    they are; all others stay as the cause, for ``GENLAB_TRACEBACK=1``.

    Args:
        where: the file or folder, as the message begins.
        kind: what to raise.
        cure: what to do about it.

    Raises:
        GenLabError: of that kind, in place of any other exception.
    """
    try:
        yield
    except (GenLabError, Warning):  # a warning raises where filters say so
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise kind(f"{where} takes more memory than there is; {cure}") from error
        raise kind(f"{where} cannot be read ({reason(error)}); {cure}") from error


def reason(error: BaseException) -> str:
    """Another library's message within one of ours: one line, printable, not too long.

    >>> reason(KeyError("blocks"))
    "KeyError: 'blocks'"
    """
    line = printable(" ".join((getattr(error, "strerror", None) or str(error)).split()), 200)
    line = line.rstrip(".")
    # Messages such as "'blocks'" or "0" say nothing without their class.
    return line if " " in line else f"{type(error).__name__}{f': {line}' if line else ''}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: on a GPU torch has a class for it, on the CPU it has not."""
    torch = sys.modules.get("torch")  # without torch it is not torch's error
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return True
    return isinstance(error, MemoryError)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """End an error message with the nearest known name, or with all of them.

    >>> nearest("huen", ["euler", "heun"])
    "did you mean 'heun'? known: euler, heun"
    """
    names = sorted(candidates)
    listed = f"known: {', '.join(names) or 'none'}"
    match = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}? {listed}" if match else listed
