"""Messages can always be printed, and reading somebody else's file ends in one of ours."""

from pathlib import Path

import pytest

from genlab.errors import (
    MOST_MESSAGE,
    MOST_TEXT,
    CheckpointError,
    DataError,
    GenLabError,
    OutputError,
    UnknownNameError,
    printable,
    reading,
    reason,
)

HOSTILE = "\x1b]0;pwned\x07\x1b[31mred\nline\u202e\u2028\x00\udcff"
"""A terminal's commands, line breaks, a turn of the direction of writing, and half a character."""


def test_text_from_files_is_printable_and_cut() -> None:
    shown = printable(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith(r"\x1b]0;pwned\x07\x1b[31mred\nline\u202e")
    assert printable("Größe 日本") == "Größe 日本"
    for text in ("x" * 2_000_000, "\x1b" * 2_000_000):
        assert len(printable(text)) == MOST_TEXT
    long = printable("begin " + "x" * 1000 + " end")
    assert long.startswith("begin ")
    assert long.endswith(" end")


def test_advice_to_programmers_is_left_out() -> None:
    with pytest.raises(ValueError, match=r"sys\.set_int_max_str_digits") as caught:
        int("9" * 5000)
    assert "sys." not in str(DataError(f"x.json is not JSON ({caught.value}); write it again"))


@pytest.mark.parametrize("kind", [CheckpointError, DataError, OutputError, UnknownNameError])
def test_every_message_is_printable(kind: type[GenLabError]) -> None:
    message = str(kind(f"w.pt holds {HOSTILE}"))
    assert message.isprintable()
    assert len(str(kind("k" * 2_000_000))) <= MOST_MESSAGE
    assert str(kind("a plain sentence; with a cure")) == "a plain sentence; with a cure"


@pytest.mark.parametrize(
    "error", [IndexError("0"), RecursionError(), ZeroDivisionError("division by zero"), OSError()]
)
def test_what_a_reader_raises_names_the_file(error: Exception) -> None:
    with (
        pytest.raises(DataError, match=r"^images\.zip cannot be read \(.*\); ask") as caught,
        reading(Path("images.zip"), DataError, "ask for another"),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_our_own_errors_and_interrupts_pass() -> None:
    for error in (CheckpointError("w.pt is cut short"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, reading("w.pt"):
            raise error
        assert caught.value is error


def test_memory_for_a_file_is_no_matter_of_batches() -> None:
    message = r"^w\.pt takes more memory than there is; fetch"
    with pytest.raises(CheckpointError, match=message), reading("w.pt"):
        raise MemoryError


def test_reasons_say_what_went_wrong() -> None:
    assert reason(KeyError("blocks")) == "KeyError: 'blocks'"
    assert reason(ValueError("no\nsuch  thing.")) == "no such thing"
    assert reason(StopIteration()) == "StopIteration"
