"""The frame of the command line: lazy commands, one sentence for an error, exit codes."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch

from genlab import cli
from genlab.cli.errors import explain
from genlab.errors import CheckpointError, GenLabError

HEAVY = {"torch", "numpy", "rich", "omegaconf", "diffusers", "accelerate", "PIL", "safetensors"}


def run(*args: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(args)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def help_pages() -> list[list[str]]:
    pages: list[list[str]] = [[]]
    context = click.Context(cli.genlab)
    for name in cli.COMMANDS:
        command = cli.genlab.get_command(context, name)
        inner = command.list_commands(context) if isinstance(command, click.Group) else []
        pages += [[name], *([name, subcommand] for subcommand in inner)]
    return pages


def test_help_of_every_command_is_light() -> None:
    """One process asks for every page; nothing heavy may be imported by then."""
    code = "\n".join(
        [
            "import sys",
            "from genlab.cli import main",
            f"codes = [main([*page, '--help']) for page in {help_pages()!r}]",
            f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)), set(codes))",
        ]
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["HEAVY [] {0}"], result.stderr


@pytest.mark.parametrize("page", help_pages(), ids=" ".join)
def test_help_pages_say_something(page: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(*page, "--help", capfd=capfd)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(['genlab', *page])}")
    assert len(out.splitlines()) > 4


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run("--help", capfd=capfd)
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_help_text(name: str) -> None:
    command = cli.genlab.get_command(click.Context(cli.genlab), name)
    assert command is not None
    assert command.help
    assert cli.COMMANDS[name].endswith(".")


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--version", capfd=capfd)
    assert code == 0
    assert out.startswith("genlab ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["smaple"], "genlab: there is no command 'smaple'; did you mean 'sample'? known: "),
        (["--huh"], "genlab: no such option '--huh' (see 'genlab --help')"),
        (["presets", "show"], "genlab presets show: missing argument 'NAME' (see "),
        (["presets", "shwo"], "genlab presets: no such command 'shwo'"),
    ],
)
def test_wrong_usage(args: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(*args, capfd=capfd)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (CheckpointError("a.pkl is damaged;\nfetch it again"), "a.pkl is damaged; fetch it again"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: no space left on device;"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: permission denied; choose"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), "a: no such file; check the path"),
        (MemoryError(), "out of memory; use a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory; use a smaller batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."), "out of memory;"),
        (click.ClickException("Nothing of the kind."), "nothing of the kind"),
    ],
)
def test_errors_become_sentences(error: Exception, sentence: str) -> None:
    message, code = explain(error)
    assert code == 2
    assert message.startswith(f"genlab: {sentence}")
    assert "\n" not in message


def test_other_codes() -> None:
    assert explain(KeyboardInterrupt())[1] == 130
    assert explain(SystemExit(3)) == ("", 3)
    assert explain(SystemExit(None)) == ("", 0)
    assert explain(click.exceptions.Exit(0)) == ("", 0)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        explain(ZeroDivisionError())


def test_tracebacks_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_TRACEBACK", "1")
    with pytest.raises(GenLabError):
        explain(GenLabError("x"))


def test_a_reader_who_leaves_is_no_error() -> None:
    """``genlab --help | head -0``: a code, but no words."""
    command = [sys.executable, "-m", "genlab", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (1, b"")


def test_ctrl_c_is_one_sentence(tmp_path: Path) -> None:
    code = "\n".join(
        [
            "import signal, sys, time",
            # What a shell starts in the background inherits that Ctrl-C is ignored.
            "signal.signal(signal.SIGINT, signal.default_int_handler)",
            "from genlab import cli",
            "cli.genlab.main = lambda *a, **k: (print('ready', flush=True), time.sleep(60))",
            "sys.exit(cli.main([]))",
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "genlab: interrupted; the same command again goes on where it can\n"
