"""The program reuses freed memory; who imports GenLab keeps the memory manager he has."""

import os
import platform
import subprocess
import sys

import pytest

HELD = """
import ctypes, sys
import torch
from genlab.cli.memory import keep_freed_memory

class Account(ctypes.Structure):  # of malloc.h; arena is what the heap has from the system
    _fields_ = [(f"field{i}" if i else "arena", ctypes.c_int) for i in range(10)]

mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Account
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = mallinfo().arena
torch.zeros(12_000_000)  # 48 MB: more than glibc keeps by itself
print(mallinfo().arena - before)
"""


def _run(code: str, *arguments: str, **variables: str) -> str:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env={**clean, **variables}, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's memory manager")
def test_freed_memory_is_kept() -> None:
    assert int(_run(HELD, "leave")) < 1_000_000
    assert int(_run(HELD, "keep")) > 40_000_000  # a little of it may have been there


def test_what_the_user_set_stays() -> None:
    code = "from genlab.cli.memory import keep_freed_memory; print(keep_freed_memory())"
    assert _run(code, MALLOC_TRIM_THRESHOLD_="131072").strip() == "False"


def test_only_the_program_does_it() -> None:
    code = (
        "import genlab.cli as cli; cli.keep_freed_memory = lambda: print('kept')\n"
        "cli.main(['--version']); print('program'); cli.main()"
    )
    as_function, _, as_program = _run(code, "--version").partition("program")
    assert "kept" not in as_function
    assert "kept" in as_program
