"""What Tab offers, through click's own completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from genlab import cli
from genlab.cli.completion import SHELLS, VARIABLE, sampler_names
from genlab.config import preset_names
from genlab.samplers import catalogue
from genlab.samplers.catalogue import KINDS, REGISTRIES


def offered(*words: str) -> list[str]:
    """What is offered for the last word."""
    complete = ShellComplete(cli.genlab, {}, "genlab", VARIABLE)
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


def test_commands() -> None:
    assert offered("") == list(cli.COMMANDS)
    assert offered("sam") == ["sample", "samplers"]
    assert "--help" in offered("--h")
    assert offered("samplers", "") == ["list", "show"]


def test_sampler_names_are_those_of_the_catalogue() -> None:
    names = sampler_names()
    assert list(names) == list(KINDS)
    for kind in KINDS:
        aliases = REGISTRIES[kind].aliases if kind in REGISTRIES else ()
        assert names[kind] == [*catalogue.names(kind), *aliases]


def test_names_for_show() -> None:
    found = offered("samplers", "show", "")
    assert {"heun", "karras", "cfg", "jacobi", "gan", "edm-heun", "dpmpp-2m"} <= set(found)
    assert len(found) == len(set(found))
    assert offered("samplers", "show", "dpmpp-s") == ["dpmpp-sde"]
    assert offered("samplers", "show", "schedule:fl") == ["schedule:flow"]


def test_models_and_settings_of_a_run() -> None:
    assert offered("sample", "edm-f")[:1] == ["edm-fmnist"]
    assert "edm-cifar10-32x32-cond-vp" in offered("sample", "edm-c")
    assert offered("sample", "edm-fmnist", "sampler=edm-heun") == [
        "sampler=edm-heun", "sampler=edm-heun-40"
    ]  # fmt: skip
    assert offered("sample", "edm-fmnist", "sampler.solver.name=he") == ["sampler.solver.name=heun"]
    assert set(offered("sample", "edm-fmnist", "sampler.s")) > {"sampler.schedule.name=karras"}
    assert offered("sample", "no/such/folder") == ["no/such/folder"]  # left to the shell
    assert offered("eval", "edm-f")[:1] == ["edm-fmnist"]


def test_settings_in_three_words_as_bash_has_them() -> None:
    assert offered("sample", "m", "sampler.solver.name", "=", "euler-") == ["euler-ancestral"]
    assert offered("sample", "m", "sampler", "=") == preset_names("sampler")


def test_configurations() -> None:
    assert offered("sample", "--config", "") == preset_names("sample")
    assert set(preset_names("train")) <= set(offered("train", ""))
    assert offered("train", "run", "edm-f") == ["edm-fmnist"]
    assert "edm-heun" in offered("presets", "show", "edm-h")
    assert "sample/edm-fmnist" in offered("presets", "show", "sample/")
    assert offered("zoo", "show", "dit-f") == ["dit-fmnist", "dit-fmnist-s"]


@pytest.mark.parametrize("shell", SHELLS)
def test_script(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    out = capfd.readouterr().out
    assert VARIABLE in out
    assert f"{shell}_complete" in out


def test_a_shell_is_answered_without_torch(tmp_path: Path) -> None:
    """The whole way: the environment that the script sets, a new process, names on stdout."""
    words = "genlab sample edm-fmnist sampler.solver.name=dd"
    environment = {VARIABLE: "zsh_complete", "COMP_WORDS": words, "COMP_CWORD": "3"}
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules));"
        "from genlab.cli import main; sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.stdout.split() == [
        "plain", "sampler.solver.name=ddpm", "_", "plain", "sampler.solver.name=ddim", "_", "False"
    ]  # fmt: skip
    assert result.returncode == 0, result.stderr
