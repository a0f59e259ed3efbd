"""What a stopped run leaves: nothing after SIGTERM; after SIGKILL what the next run removes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_sets import class_files, write_folder

from genlab.data.prepare import prepare
from genlab.files import atomic_path, remove_leftovers

PACK_SLOWLY = """
import sys, time
from pathlib import Path
from genlab.cli import main
from genlab.data import prepare
source, dest, started = sys.argv[1:]
pack = prepare._Job.pack
def slow(job, chunk):
    Path(started).touch()
    time.sleep(60)
    return pack(job, chunk)
prepare._Job.pack = slow
sys.argv = ["genlab", "data", "prepare", source, dest, "--workers", "1"]
sys.exit(main())
"""


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def stopped(tmp_path: Path, number: signal.Signals) -> int:
    """Stop ``genlab data prepare`` while it packs; gives its exit code."""
    root = write_folder(tmp_path / "set", class_files())
    started = tmp_path / "started"
    command = [sys.executable, "-c", PACK_SLOWLY, str(root), str(tmp_path / "a.zip"), str(started)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert len(hidden(tmp_path)) == 1
    process.send_signal(number)
    return process.wait(timeout=120)


@pytest.mark.slow
def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    assert stopped(tmp_path, signal.SIGTERM) == 143
    assert hidden(tmp_path) == []
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.slow
def test_a_rerun_removes_what_sigkill_left(tmp_path: Path) -> None:
    assert stopped(tmp_path, signal.SIGKILL) == -signal.SIGKILL
    assert len(hidden(tmp_path)) == 1
    prepare(tmp_path / "set", tmp_path / "a.zip")
    assert hidden(tmp_path) == []


def test_only_what_nobody_is_writing_is_removed(tmp_path: Path) -> None:
    others = [".a.zip.abcdefgh.tmp", ".b.zip.abcdefgh.tmp", ".a.zip.old.tmp", "a.zip.abcdefgh.tmp"]
    for name in others:
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / ".a.zip.pipe1234.tmp")
    with atomic_path(tmp_path / "a.zip") as writing:
        remove_leftovers(tmp_path / "a.zip")
        assert writing.exists()
        writing.write_text("whole")
    assert not (tmp_path / others[0]).exists()
    assert all((tmp_path / name).exists() for name in others[1:])
    assert (tmp_path / "a.zip").read_text() == "whole"
    remove_leftovers(tmp_path / "nowhere" / "a.zip")
