"""The prepared run on a GPU, tried on small networks, so that it works when there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_section_runs(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    program = str(CHECKOUT / "benchmarks" / "gpu.py")
    command = [sys.executable, program, "--tiny", "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads(output.read_text())["sections"]
    assert {"tests", "equality", "synchronisation", "dit", "saved", "features"} <= set(sections)
    assert all(section["rows"] for section in sections.values())
