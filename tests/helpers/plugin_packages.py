"""Packages with plug-ins in a folder, and the command line run with that folder on the path."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "plugin-example"

_DRIVER = """
import contextlib, io, json, sys, traceback
from genlab.cli import main

results = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            sys.argv = ["genlab", *arguments]
            code = main()
        except Exception:
            code = 1
            traceback.print_exc()
    results.append((code, out.getvalue(), err.getvalue()))
json.dump(results, sys.stdout)
"""

Result = tuple[int, str, str]
"""Exit code (1 with a traceback), standard output, standard error."""


def install_example(folder: Path) -> Path:
    """Let pip install the package of docs/plugins.md into a new folder, without a network."""
    source = shutil.copytree(
        EXAMPLE, folder / "source"
    )  # pip builds in the folder that it is given
    site = folder / "site"
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options, "--target", site, source],
        check=True, env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    return site


def write_package(
    site: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, Sequence[str]]
) -> None:
    """What pip would leave of a package.

    Args:
        site: the folder to put it in.
        name: of the distribution; its modules are in a package of that name with underscores.
        modules: name -> source.
        entry_points: group without ``genlab.`` -> lines.
    """
    folder = site / name.replace("-", "_")
    folder.mkdir(parents=True)
    for module, source in {"__init__": "", **modules}.items():
        (folder / f"{module}.py").write_text(source)
    metadata = site / f"{folder.name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    sections = [f"[genlab.{group}]\n" + "\n".join(lines) for group, lines in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(sections))


def run_commands(
    site: Path, commands: Sequence[Sequence[object]], environment: Mapping[str, str] | None = None
) -> list[Result]:
    """Run commands of ``genlab`` one after the other in one process, where torch loads once."""
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    text = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER], input=text, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": path} | dict(environment or {}),
    )  # fmt: skip
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]
