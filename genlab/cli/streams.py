"""Standard output and error made usable: open, and able to take any text."""

import codecs
import os
import sys
from pathlib import Path

ASCII = {
    "\u2192": "->", "\u2190": "<-", "\u2191": "^", "\u2193": "v", "\u00b1": "+-", "\u00d7": "x",
    "\u2013": "-", "\u2014": "-", "\u2026": "...", "\u2264": "<=", "\u2265": ">=", "\u00b7": "-",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
}  # fmt: skip
"""What terminals that know no more than ASCII show for signs of our own."""


def open_streams() -> None:
    """Give a process that was started without output one, and let no text fail to be written.

    A terminal of few letters (``PYTHONIOENCODING=ascii``) shows signs of ours by similar ones and
    all others as escapes; so does every terminal with halves of characters (from file names).
    """
    codecs.register_error("genlab", _similar)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us: ``genlab ... >&-``
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="genlab")


def _similar(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    return "".join(ASCII.get(c, ascii(c)[1:-1]) for c in part), error.end
