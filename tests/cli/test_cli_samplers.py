"""``genlab samplers``: what is listed is what is registered, and what is shown is what runs."""

import dataclasses
import json
import shlex
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from genlab import cli
from genlab.config import preset_names
from genlab.registry import Registry
from genlab.samplers import catalogue
from genlab.samplers.base import SOLVERS, Solver
from genlab.samplers.catalogue import KINDS, REGISTRIES, entries
from genlab.samplers.solvers.heun import Heun

ALL = [(kind, name) for kind in KINDS for name in catalogue.names(kind)]


def samplers(*args: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["samplers", *args])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def shown(name: str, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    code, out, err = samplers("show", name, "--json", capfd=capfd)
    assert (code, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_everything_that_is_registered_is_listed(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = samplers("list", "--json", capfd=capfd)
    assert code == 0
    listed = [(entry["kind"], entry["name"]) for entry in json.loads(out)]
    assert listed == ALL
    for kind, registry in REGISTRIES.items():
        assert {name for its, name in listed if its == kind} == set(registry)
    assert [name for kind, name in listed if kind == "preset"] == preset_names("sampler")


def test_tables(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = samplers(capfd=capfd)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    [heun] = [line for line in lines if line.startswith(" heun")]
    assert heun.split()[:7] == ["heun", "2", "19", "39", "99", "0", "yes"]
    [sde] = [line for line in lines if line.startswith(" dpmpp-sde")]
    assert sde.split()[:7] == ["dpmpp-sde", "1", "19", "39", "99", "2", "no"]
    assert any(line.startswith(" dpmpp, dpmpp-2m") for line in lines)
    assert any("edm-heun-40" in line and "heun, 40 steps" in line for line in lines)
    assert any("gan" in line and "statistics.standing" in line for line in lines)


def test_tables_of_one_kind_in_markdown(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = samplers("list", "guidance", "--markdown", capfd=capfd)
    lines = out.splitlines()
    assert lines[0].startswith("### Guidance")
    assert len({line.replace("\\|", "").count("|") for line in lines[2:] if line}) == 1
    assert r"log p(class \| x)" in out


def test_the_tables_of_the_documentation_are_these(capfd: pytest.CaptureFixture[str]) -> None:
    """Where this fails, put what the command prints between the two comments."""
    _, out, _ = samplers("list", "--markdown", capfd=capfd)
    page = Path(__file__).parents[2] / "docs" / "samplers" / "README.md"
    start, end = "<!-- tables: genlab samplers list --markdown -->", "<!-- end of tables -->"
    _, _, rest = page.read_text(encoding="utf-8").partition(start)
    assert rest.partition(end)[0].strip() == out.strip()


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_entry_says_what_it_is(kind: str, name: str) -> None:
    entry = catalogue.entry(kind, name)
    assert entry.summary
    assert "`" not in " ".join([entry.summary, *entry.text, entry.source])
    for option in entry.options:
        assert option.meaning, f"{option.name} has no meaning in the docstring"
        assert option.takes != "another type", f"{option.name} has no type that configs know"
    if kind in REGISTRIES:
        assert any("Choose it" in paragraph for paragraph in entry.text)
        assert entry.source
    if kind in ("guidance", "decoder"):
        assert any("cost" in paragraph.lower() for paragraph in entry.text)
    if kind in ("solver", "schedule", "guidance", "preset"):
        assert entry.suits


@pytest.mark.parametrize("name", SOLVERS)
def test_options_are_the_fields(name: str) -> None:
    entry = catalogue.entry("solver", name)
    solver = SOLVERS.build(name)
    assert [option.name for option in entry.options] == [
        each.name for each in dataclasses.fields(solver)
    ]
    for option in entry.options:
        default = OmegaConf.from_dotlist([f"value={option.default}"]).value
        value = getattr(solver, option.name)
        assert (float(default) if isinstance(value, float) else default) == value


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_command_to_copy_is_taken(
    kind: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(catalogue.entry(kind, name).command)
    assert program == "genlab"
    if "MODEL" in words:  # no bundled one has timesteps, or was trained by flow matching
        words[words.index("MODEL")] = "edm-fmnist"
        assert cli.main([*words, "--dry-run"]) == 2
        told = capfd.readouterr().err
        assert "picks among the timesteps of a discrete model" in told or "flow matching" in told
        return
    assert cli.main([*words, "--dry-run"]) == 0
    config = OmegaConf.create(capfd.readouterr().out)
    if kind in ("solver", "schedule", "decoder"):
        assert config.sampler[kind].name == name
    if kind == "guidance":
        assert config.sampler.guidance[-1].name == name


def test_a_page(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = samplers("show", "heun", capfd=capfd)
    assert (code, err) == (0, "")
    for text in (
        "heun (solver)",
        "EDM's sampler: an Euler step, corrected",
        "Choose it by default.",
        "19 in 10 steps, 39 in 20 steps, 99 in 50 steps",
        "deterministic, with the default options",
        "S_max: a number, default inf",
        "standard deviation of the added noise, that of restarts included",  # inherited from churn
        "arXiv:2206.00364",
        "genlab sample edm-fmnist sampler.solver.name=heun",
    ):
        assert text in out
    assert max(map(len, out.splitlines())) <= 100


def test_names_that_two_kinds_share(capfd: pytest.CaptureFixture[str]) -> None:
    assert [entry["kind"] for entry in shown("flow", capfd)] == ["solver", "schedule"]
    assert [entry["kind"] for entry in shown("schedule:flow", capfd)] == ["schedule"]
    assert [entry["kind"] for entry in shown("euler", capfd)] == ["solver", "preset"]
    _, out, _ = samplers("show", "preset:euler", capfd=capfd)
    assert "num_steps: 50" in out


def test_aliases_and_class_names_become_names(capfd: pytest.CaptureFixture[str]) -> None:
    [entry] = shown("dpmpp-2m", capfd)
    assert (entry["name"], entry["aliases"]) == ("dpmpp", ["dpmpp-2m"])
    assert "steadier than heun there" in entry["text"][0]
    assert entry["nfe"] == {"10": 10, "20": 20, "50": 50}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("huen", "there is no solver, schedule, guidance, decoder, family or preset 'huen'; did"),
        ("solver:karras", "there is no solver 'karras'"),
        ("solvr:heun", "there is no kind 'solvr'; did you mean 'solver'?"),
    ],
)
def test_unknown_names(name: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = samplers("show", name, capfd=capfd)
    assert (code, out) == (2, "")
    assert err.startswith(f"genlab: {message}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patient(Heun):
    """Heun's method, slowly.

    Choose it to test plug-ins.

    Attributes:
        patience: in seconds, >= 0.

    Source: none.
    """

    patience: float = 3.0


class Unfinished(Solver):
    """Lacks its step."""

    order = 1


def test_plugins_are_listed_and_broken_ones_leave_a_warning(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: Registry[type[Solver]] = Registry(
        "genlab.solvers",
        {"heun": "genlab.samplers.solvers.heun:Heun", "gone": "genlab.nowhere:Gone"},
        builds=Solver,
    )
    fresh.register("patient")(Patient)
    fresh.register("unfinished")(Unfinished)  # type: ignore[type-abstract]  # that is the point
    monkeypatch.setattr(catalogue, "REGISTRIES", {**REGISTRIES, "solver": fresh})
    with pytest.warns(UserWarning, match="left out") as warned:
        listed = [entry.name for entry in entries("solver")]
    assert listed == ["heun", "patient"]
    assert {"gone" in str(each.message) for each in warned} == {True, False}
    [patient] = catalogue.find("patient")
    assert [option.name for option in patient.options][-1] == "patience"
    assert patient.options[-1].meaning == "in seconds, >= 0."
    assert patient.options[0].meaning.startswith("how much noise in the whole run")


def test_a_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = REGISTRIES["solver"]
    entry = EntryPoint("ralston", "genlab.samplers.solvers.heun:Heun", "genlab.solvers")
    vars(entry)["dist"] = types.SimpleNamespace(name="genlab-example")
    monkeypatch.setitem(registry._entries, "ralston", entry)
    assert catalogue.entry("solver", "ralston").package == "genlab-example"
    assert catalogue.entry("solver", "heun").package is None


def test_listing_names_needs_no_torch() -> None:
    import subprocess

    code = "\n".join(
        [
            "import sys",
            "from genlab.cli.completion import sampler_names, model_names",
            "sampler_names(), model_names()",
            "print('torch' in sys.modules)",
        ]
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
